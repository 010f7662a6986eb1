/* SPDX-License-Identifier: MIT */

/**
 * @file
 * Who runs first: what a program waits for, then the program, then what can be put off.
 *
 * No function fails: what is not allowed is left as it is.
 */

#ifndef USW_PRIORITY_H
#define USW_PRIORITY_H

#include <pthread.h>

/**
 * Ask the scheduler to run a task (0: the calling thread) soon and briefly when it wakes: a fault
 * that waits behind somebody's time slice costs milliseconds. The slice needs no privilege (ignored
 * before Linux 6.12); the weight that keeps 64 busy threads of a program from leaving the agent
 * three percent of a processor does, and is left alone without it.
 */
void usw_priority_hurry(int task_id);

/**
 * The same, for the calling thread, behind those: while it makes room that somebody waits for. On a
 * busy machine it would get next to nothing beside a thread of the highest weight.
 */
void usw_priority_hurry_less(void);

/** The nice value of the calling thread, and back to that. */
int usw_priority_nice(void);
void usw_priority_hurry_no_more(int nice);

/**
 * Before everything else, for the calling thread, which only ever runs for some microseconds. Where
 * the kernel schedules each session of a terminal as a group ("The autogroup feature" in sched(7)),
 * weights count only within the group, and one's own threads use up its turn.
 */
void usw_priority_hurry_most(void);

/** The calling thread runs when no other wants the processor. */
void usw_priority_wait(void);

/** End that, for a thread that is to come to its end soon. */
void usw_priority_wait_no_more(pthread_t thread);

/**
 * Whoever waits for this processor runs before the calling thread goes on. To be called between two
 * pieces of work by threads that run while faults are answered. Each time such a thread wakes it is
 * owed something, as little as its weight may be, and if the fault thread is ahead of its own share
 * at that moment it takes that in one go: until the next tick, 4 ms later at 250 Hz (pick_eevdf() in
 * kernel/sched/fair.c).
 */
void usw_priority_yield(void);

#endif /* USW_PRIORITY_H */
