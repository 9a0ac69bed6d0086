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

/* The leak checker needs /proc and a tracer, which neither PID 1 nor a process in another mount namespace has. */
const char *__asan_default_options(void);
const char *__asan_default_options(void) {
	return "detect_leaks=0";
}
