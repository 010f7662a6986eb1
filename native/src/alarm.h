// SPDX-License-Identifier: MIT

/**
 * @file
 * Alarms: wake the watch thread when a program that slept runs again.
 *
 * A program that does not run does not grow, but looking at it every 10 ms costs half a percent of
 * a processor for ever. So while all targets sleep, each has a timer on its own processor clock
 * (timer_create() takes the clock of any process): it stands still with the program and expires
 * at the scheduler's first tick at which the program runs its own code, 4 ms later at the most.
 * Costs nothing meanwhile, in either process. The kernel delivers it at a return to user mode: a
 * program that wakes up into one long system call (MAP_POPULATE, read(2) into fresh memory) is
 * found by looking now and then, as often as the room demands.
 *
 * One that always runs for less than a tick may be missed for long; it is looked at now and then,
 * and what it can grow by meanwhile is bounded by what it runs.
 *
 * Used by the watch thread only. The signal is delivered to it alone and raises its futex.
 */

#ifndef USW_ALARM_H
#define USW_ALARM_H

#include <signal.h>

#include "base.h"

struct usw_session;
struct usw_target;

/** With more targets than this nobody sleeps. */
#define USW_ALARMS_MAX 64u

struct usw_alarm {
	uint32_t target_id; /* 0: not in use */
	timer_t timer;
	uint64_t ran_ns; /* of its processor clock when it was last looked at */
	uint32_t pass;   /* when the target was last seen */
};

struct usw_alarms {
	struct usw_alarm at[USW_ALARMS_MAX];
	uint32_t pass;
	uint64_t looked_ns; /* when the clocks were last read */
	bool asleep;        /* none has run since then, or hardly */
};

/** Make the signal known. Before the thread begins; once in a process is enough. */
int usw_alarms_init(void);
void usw_alarms_deinit(struct usw_alarms *alarms);

/**
 * True if all targets have slept for a tenth of a second, and the alarm of each is set: `futex` is
 * raised when one wakes. Only for the thread that is to be woken.
 */
bool usw_alarms_set(struct usw_alarms *alarms, struct usw_session *session,
		    _Atomic uint32_t *futex);

#endif /* USW_ALARM_H */
