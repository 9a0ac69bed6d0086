/* `user` as OCI images write it (name|uid[:group|gid]), resolved like Docker does. */
#define _GNU_SOURCE
#include "guest.h"

#include <grp.h>
#include <pwd.h>
#include <stdio.h>
#include <string.h>

#define MAX_ID 0xfffffffeL

/* Finds `user` by name, or by number when no such name exists; gives its name, or "" when only the number is known. */
static bool find_user(const char *user, struct account *account, char *name, size_t size)
{
	FILE *file = fopen("/etc/passwd", "re");
	struct passwd *entry = NULL;
	long number = -1;
	bool numeric = parse_number(user, 0, MAX_ID, &number);

	while (file && (entry = fgetpwent(file)))
		if (strcmp(entry->pw_name, user) == 0 || (numeric && entry->pw_uid == (uid_t)number))
			break;
	if (entry) {
		account->uid = entry->pw_uid;
		account->gid = entry->pw_gid;
		snprintf(name, size, "%s", entry->pw_name);
		snprintf(account->home, sizeof account->home, "%s", *entry->pw_dir ? entry->pw_dir : "/");
	} else if (numeric) {
		account->uid = (uid_t)number;
	}
	if (file)
		fclose(file);
	return entry || numeric;
}

static bool is_member(const struct group *entry, const char *name)
{
	for (char **member = entry->gr_mem; *name && *member; member++)
		if (strcmp(*member, name) == 0)
			return true;
	return false;
}

/* The group that was asked for, or else every group that lists the user. */
static bool find_groups(const char *group, const char *name, struct account *account)
{
	FILE *file = fopen("/etc/group", "re");
	struct group *entry;
	long number = -1;
	bool numeric = group && parse_number(group, 0, MAX_ID, &number), found = false;

	while (file && (entry = fgetgrent(file))) {
		if (group && (strcmp(entry->gr_name, group) == 0 || (numeric && entry->gr_gid == (gid_t)number))) {
			account->gid = entry->gr_gid;
			found = true;
			break;
		}
		if (!group && is_member(entry, name) && account->group_count < MAX_GROUPS)
			account->groups[account->group_count++] = entry->gr_gid;
	}
	if (file)
		fclose(file);
	if (group && !found && numeric)
		account->gid = (gid_t)number;
	return !group || found || numeric;
}

/* False, and `why`, when there is no such user or group. */
bool find_account(const char *user, struct account *account, char *why, size_t size)
{
	char wanted[512], name[512] = "";

	snprintf(wanted, sizeof wanted, "%s", user && *user ? user : "0");
	char *group = strchr(wanted, ':');
	if (group)
		*group++ = '\0';
	memset(account, 0, sizeof *account);
	strcpy(account->home, "/");
	if (!find_user(*wanted ? wanted : "0", account, name, sizeof name)) {
		snprintf(why, size, "the image has no user %s", wanted);
		return false;
	}
	if (!find_groups(group && *group ? group : NULL, name, account)) {
		snprintf(why, size, "the image has no group %s", group);
		return false;
	}
	return true;
}
