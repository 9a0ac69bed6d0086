#include "agent.h"
int tar_in_task(const struct request *request)
{
	(void)request;
	return 1;
}
