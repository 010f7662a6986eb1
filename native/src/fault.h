// SPDX-License-Identifier: MIT

/**
 * @file
 * The fault thread: reads a target's messages, applies its events, answers its faults.
 *
 * One thread serves one target for all its life, so a target's page map has one reader on the
 * fault path and no lock. A fault that cannot be answered now (no room, an eviction in flight, an
 * unread event) is put aside, since the kernel never sends it again, and tried again soon.
 */

#ifndef USW_FAULT_H
#define USW_FAULT_H

#include "answer.h"
#include "session.h"

int usw_fault_thread_init(struct usw_fault_thread *thread, struct usw_session *session);
void usw_fault_thread_deinit(struct usw_fault_thread *thread);

/** Begin to serve a target. Any thread. */
int usw_fault_serve(struct usw_fault_thread *thread, struct usw_target *target);
/** A child that is not served yet has its parent looked at when it says something; or no more. */
void usw_fault_await(struct usw_target *parent, struct usw_target *child);
void usw_fault_turn_away(struct usw_target *parent, struct usw_target *child);
/** Watch the pidfd a forked child's handshake brought. Any thread. */
int usw_fault_watch_exit(struct usw_target *target);

/* Where an event of a fault thread's epoll set comes from: the low bits of its data. */
enum usw_fault_source { USW_SOURCE_UFFD = 0, USW_SOURCE_PIDFD = 1, USW_SOURCE_DISK = 2 };

/**
 * Read and settle what one target has to say. The thread whose fault was answered here has run on
 * this processor since, in our place, and is most often waiting again: look before asking epoll.
 * The target's fault thread only, as the next two.
 */
void usw_fault_pump(struct usw_fault_thread *thread, struct usw_target *target);
/** Answer a fault, or put it aside if that cannot be now. */
enum usw_verdict usw_fault_answer(struct usw_fault_thread *thread, struct usw_target *target,
				  const struct usw_fault *fault);
/** A fault has its verdict, and it is not to try again. */
void usw_fault_finish(struct usw_fault_thread *thread, const struct usw_fault *fault,
		      enum usw_verdict verdict);

#endif /* USW_FAULT_H */
