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

#include "session.h"

/** Pages of zeros a stream of hole faults gets at once, at most. */
#define USW_HOLE_PAGES_MAX 32u

int usw_fault_thread_init(struct usw_fault_thread *thread, struct usw_session *session);
void usw_fault_thread_deinit(struct usw_fault_thread *thread);

/** Begin to serve a target. Any thread. */
int usw_fault_serve(struct usw_fault_thread *thread, struct usw_target *target);
/** Watch the pidfd a forked child's handshake brought. Any thread. */
int usw_fault_watch_exit(struct usw_target *target);

/**
 * Bring an evicted page back that nobody waits for. The target's fault thread only. 1, or 0 if
 * there was nothing to bring or it cannot be brought; -EAGAIN: not now, an event is unread;
 * -EINPROGRESS: its segment is on its way up from a disk.
 */
int usw_fault_bring_in(struct usw_fault_thread *thread, struct usw_target *target, uint64_t page);

#endif /* USW_FAULT_H */
