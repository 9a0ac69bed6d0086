#include "agent.h"
int identity_task(const struct request *request)
{
	(void)request;
	return 1;
}
