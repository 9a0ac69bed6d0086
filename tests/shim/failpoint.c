/* In the test build only: sleeps at the point that COCOON_SHIM_FAILPOINT names, under a name that a test finds in /proc. */
#include "../../native/shim/shim.h"

void failpoint(const char *name) {
	const char *wanted = getenv("COCOON_SHIM_FAILPOINT");
	char title[16];
	if (!wanted || strcmp(wanted, name))
		return;
	snprintf(title, sizeof(title), "at-%s", name);
	prctl(PR_SET_NAME, title, 0, 0, 0);
	sleep(60);
}
