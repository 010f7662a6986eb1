// SPDX-License-Identifier: MIT

/**
 * @file
 * The agent's end of a target's command ring and of its gate. See wire.h.
 *
 * The ring is memory of a target that may be hostile: it is read through volatile-like atomic
 * loads, each value once, and every wait is bounded.
 */

#ifndef USW_RING_H
#define USW_RING_H

#include "target.h"

/** What hands answered, copied out of the ring. */
struct usw_answer {
	uint64_t moved[USW_BATCH_PAGES_MAX / 64];
	int error; /* 0 or -errno: why not every page went */
};

static inline bool usw_answer_has(const struct usw_answer *answer, uint32_t page)
{
	return answer->moved[page / 64] >> (page % 64) & 1;
}

/** Enter the gate to read messages. False: hands is in the middle of a move; try again soon. */
bool usw_gate_enter(struct usw_target *target);
void usw_gate_leave(struct usw_target *target);

/**
 * Whether hands takes commands. A program hands itself in first and starts hands then, and whoever
 * stops it in between (SIGSTOP, a debugger, a freezer) may himself wait for what only others can
 * make room for: so nothing is posted before. Nor is it to a hands that has not answered what was
 * withdrawn from it. 0; -EAGAIN: not now; -ESRCH: it is gone; -ECHILD: it could not be started.
 */
int usw_ring_look(const struct usw_target *target);

/** Post a command. Reclaim thread only; the one before has been waited for, and hands takes it. */
void usw_ring_post(struct usw_target *target, enum usw_command_op op, uint32_t epoch,
		   const struct usw_run *runs, uint32_t run_count, bool prepare);

/**
 * Wait until hands has done what was posted: spins, then sleeps. 0; -ECANCELED: the command was
 * withdrawn, because hands has not come to it, and nothing has happened; -ESRCH: hands is gone;
 * -ETIMEDOUT: it has not answered for 10 s. Then the target must be killed, for what was in flight
 * is lost with it.
 */
int usw_ring_wait(struct usw_target *target, struct usw_answer *ret);

/** Whether hands has let go of its end of the connection. Any thread. */
bool usw_ring_is_cut(const struct usw_target *target);

/**
 * Who has said first on the connection that it is hands, by the kernel's word and number; 0: nobody
 * so far, or nobody that can be seen from here. It is said once. Reclaim thread.
 */
int usw_ring_sender(const struct usw_target *target);

/** End hands. Any thread. */
void usw_ring_quit(struct usw_target *target);

#endif /* USW_RING_H */
