// SPDX-License-Identifier: Apache-2.0
/*
 * asr-tsc - how fast this machine's time stamp counter runs, in kHz.
 *
 * Design: an emulated guest sees the host's counter and measures its speed
 * against an emulated timer. On a busy host that goes wrong by factors now and
 * then, and the guest's clock with it. So it is told (tsc_early_khz). Counter
 * and clock are read together, so a busy host does not matter: of some tries
 * to read both, the one that took the shortest time counts.
 * Context: tests.
 */
#include <stdint.h>
#include <stdio.h>
#include <time.h>
#ifdef __x86_64__
#include <x86intrin.h>

#define TRIES	50

/* A moment by both clocks */
static void both(uint64_t *ns, uint64_t *ticks)
{
	uint64_t best = UINT64_MAX;

	for (int i = 0; i < TRIES; i++) {
		uint64_t before = __rdtsc(), after;
		struct timespec t;

		clock_gettime(CLOCK_MONOTONIC_RAW, &t);
		after = __rdtsc();
		if (after - before >= best)
			continue;
		best = after - before;
		*ns = (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
		*ticks = before + best / 2;
	}
}

int main(void)
{
	const struct timespec pause = { .tv_nsec = 50000000 };
	uint64_t ns0, ns1, t0, t1;

	both(&ns0, &t0);
	nanosleep(&pause, NULL);
	both(&ns1, &t1);
	printf("%.0f\n", (double)(t1 - t0) * 1e6 / (double)(ns1 - ns0));
	return 0;
}
#else
int main(void)
{
	return 1;
}
#endif
