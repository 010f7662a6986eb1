// SPDX-License-Identifier: MIT

/**
 * @file
 * Requests of the control plane that outlast a call: a fixed table, part of the session.
 *
 * The control thread fills a free entry and posts it; the thread that owns what it needs carries
 * it out in small steps between its other work, and ends it; the control thread takes the result
 * and frees the entry. So each field has one writer at a time, handed over through `state`, and
 * nobody waits for anybody. See control.h for who does what.
 *
 * An entry may be used again between two looks at it, so a fault thread that has read whose it is
 * looks at `state` once more: still (or again) posted means that what it read was so.
 */

#ifndef USW_REQUEST_H
#define USW_REQUEST_H

#include "base.h"

/** Entries below this are for reclaims and parks, the ones from it on for restores. */
#define USW_REQUESTS_EVICT 32u
#define USW_REQUESTS_MAX 64u

enum usw_request_kind {
	USW_REQUEST_RECLAIM, /* reclaim thread */
	USW_REQUEST_PARK,    /* reclaim thread */
	USW_REQUEST_RESTORE, /* the fault thread of the target */
};

/*
 *   FREE --control--> POSTED --owner--> DONE --control--> FREE
 */
enum usw_request_state {
	USW_REQUEST_FREE = 0,
	USW_REQUEST_POSTED = 1,
	USW_REQUEST_DONE = 2,
};

struct usw_request {
	_Atomic uint32_t state;
	_Atomic bool cancelled; /* its opposite was asked for: end with what is done */
	enum usw_request_kind kind;
	_Atomic uint32_t target_id; /* 0: all targets */
	uint64_t wanted_pages;

	/* The owner's, while it is posted. */
	uint64_t moved_pages;
	int result;           /* 0 or -errno */
	uint32_t turn_id;     /* of all targets: whose turn it is; they go by falling ID */
	uint32_t barren_laps; /* laps in a row in which nothing left */
	uint32_t laps;
	bool lap_gave;
	uint64_t idle_since_ns; /* nothing could even be looked at since then; 0: it can */
	uint64_t address;       /* restore: where it goes on */
};

struct usw_requests {
	_Atomic uint32_t posted_count;
	struct usw_request at[USW_REQUESTS_MAX];
};

#endif /* USW_REQUEST_H */
