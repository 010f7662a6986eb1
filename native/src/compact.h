// SPDX-License-Identifier: MIT

/**
 * @file
 * Compaction: what still lives in the emptiest segments moves into the open one.
 *
 * Each object is copied, then its descriptor is repointed by one compare-and-swap; whoever freed
 * it meanwhile wins, and the copy becomes garbage. Page maps are never touched. Only the owner of
 * the segments (the reclaim thread) compacts; faults go on meanwhile.
 */

#ifndef USW_COMPACT_H
#define USW_COMPACT_H

#include "vswap.h"

/**
 * Move one live object, in whatever form: `object` says which bytes, of what length and codec, they
 * are to be. It goes where its like is: `is_dense`. 0 also if it died meanwhile; -ENOSPC.
 */
int usw_compact_move(struct usw_vswap *vswap, uint32_t segment, uint32_t index,
		     const struct usw_object *object, bool is_dense);

/**
 * Empty one segment if there is one worth it (usw_segments.worth_share). Returns 1 if it did, 0
 * if nothing is worth it, -ENOSPC if there is no room to move to. At most one megabyte of copying.
 */
int usw_compact_one(struct usw_vswap *vswap);

#endif /* USW_COMPACT_H */
