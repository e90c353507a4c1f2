// SPDX-License-Identifier: Apache-2.0
/*
 * asrctl spool: what waits on disk for the vault.
 */
#include "asrctl.h"

#include <errno.h>
#include <string.h>

int spool_discard_run(const struct args *a, struct why *why)
{
	const char *yes = arg_value(a, "yes", NULL), *group = a->words[0];
	cleanup_json answer = NULL;
	int err;

	if (!yes || strcmp(yes, group))
		return why_set(why, EINVAL, "what is in the spool of group %s has not reached the vault: its moments "
			       "would be lost, and all disks copied again. If that is meant: --yes %s", group, group);
	err = daemon_call(a, "io.asr.Spool.Discard", json_pack("{s:s}", "group", group), &answer, why);
	if (err)
		return err;
	if (a->json)
		out_json(answer);
	else
		printf("the spool of group %s is discarded; all its disks are dirty and are copied again\n", group);
	return 0;
}
