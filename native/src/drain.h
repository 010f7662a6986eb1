// SPDX-License-Identifier: MIT

/**
 * @file
 * Draining standby: pages that nobody has asked for again become objects.
 *
 * The oldest go first. Most are compressed already when their turn comes (ahead.h), the others are
 * now; a slot whose ID resolves to it no more is just given up. Everything here runs on the reclaim
 * thread, which owns slots, descriptors and segments; no lock is needed.
 */

#ifndef USW_DRAIN_H
#define USW_DRAIN_H

#include "session.h"

/** Compress the oldest standby pages until at most `keep` slots are taken. 0 or -ENOSPC. */
int usw_standby_drain(struct usw_target *target, uint32_t keep, uint32_t max_pages);

/** Compress one standby page, to which an ID resolves, into an object. 0 or -ENOSPC. */
int usw_standby_compress(struct usw_session *session, uint32_t number, uint32_t slot, uint32_t id);

#endif /* USW_DRAIN_H */
