// SPDX-License-Identifier: MIT

/**
 * @file
 * Housekeeping: what the reclaim thread does between two rounds of evicting, a little at a time.
 *
 * Nobody waits for it, but where RAM is tight the budget depends on it: each byte of garbage takes
 * the place of several of memory. All of it runs on the reclaim thread, which takes one target's
 * map_lock at a time.
 */

#ifndef USW_HOUSEKEEP_H
#define USW_HOUSEKEEP_H

#include "session.h"

/** Look after all of it once: some milliseconds at most, as a rule some microseconds. */
void usw_housekeep(struct usw_session *session);

/** Compress what is in standby, but for the `keep` youngest pages of each target. */
void usw_housekeep_drain(struct usw_session *session, uint32_t keep);

/** Give the memory of empty standby queues back. */
void usw_housekeep_trim(struct usw_session *session);

/**
 * Empty a segment, if more than one part in `garbage_share` of what is held is garbage. True if it
 * did something: there may be more.
 */
bool usw_housekeep_compact(struct usw_session *session, uint64_t garbage_share);

#endif /* USW_HOUSEKEEP_H */
