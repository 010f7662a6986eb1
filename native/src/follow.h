/* SPDX-License-Identifier: MIT */

/**
 * @file
 * Where the threads run that work for a target: on the processor of the thread that faults.
 *
 * That thread sleeps while we answer, its processor is awake and its cache is warm. Waking another,
 * halted virtual processor takes 65 to 120 us, and left alone the scheduler does that: it looks for
 * an idle one. Hands goes along, so that what it unmaps has to be flushed from one processor only.
 *
 * While the program walks, the fault thread is at work for as long as the program sleeps, and a wait
 * for hands, 150 us for a batch, is a wait for the next window: then hands is let go.
 *
 * Who follows has nowhere else to go, so there are two ways out: nobody follows a thread of a
 * real-time policy, which might keep the processor to itself; and hands, whom the reclaim thread
 * waits for, is let go when it does not run. No lock is held.
 */

#ifndef USW_FOLLOW_H
#define USW_FOLLOW_H

#include "session.h"

/**
 * The calling fault thread and the target's hands follow the thread of a fault that has just been
 * read, now and then.
 */
void usw_follow(struct usw_fault_thread *thread, struct usw_target *target,
		const struct usw_fault *fault);

/** Let hands run wherever it may until the next thread is followed. Any thread. */
void usw_follow_let_go(struct usw_target *target);

#endif /* USW_FOLLOW_H */
