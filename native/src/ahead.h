/* SPDX-License-Identifier: MIT */

/**
 * @file
 * Compressing ahead: standby pages become objects on idle processors before they have to.
 *
 * Compression is most of what an eviction costs, and one thread does all evictions of a session.
 * So it offers the pages that will leave standby next, and compressor threads, which run when no
 * other wants the processor, compress them meanwhile. When a page's turn comes its object is there;
 * or it is not, and then the owner takes part: it never waits for a thread that may not be running
 * for longer than the work itself would take.
 *
 * An offer is an entry of a ring in the order in which the pages will be wanted; the oldest are
 * overwritten. Its state says whose it is: OPEN, anybody's; TAKEN, of the one who took it, until it
 * says DONE. Only the owner makes entries OPEN, and it reads what is DONE. What a thread makes of a
 * slot that has been given up since is never asked for: the owner forgets the entry with the slot,
 * and standby slots can be read for ever (standby.h).
 *
 * Owner: the reclaim thread. No locks.
 */

#ifndef USW_AHEAD_H
#define USW_AHEAD_H

#include <pthread.h>

#include "compressor.h"
#include "standby.h"

#define USW_AHEAD_ENTRIES 128u
#define USW_AHEAD_THREADS_MAX 4u

enum usw_ahead_state { USW_AHEAD_FREE, USW_AHEAD_OPEN, USW_AHEAD_TAKEN, USW_AHEAD_DONE };

struct usw_ahead_entry {
	_Atomic uint32_t state; /* enum usw_ahead_state */
	uint32_t number, slot;  /* where the page is */
	uint32_t length_bytes;
	enum usw_codec codec;
	bool is_by_thread; /* not by the owner itself */
} __attribute__((aligned(64)));

struct usw_ahead_thread {
	struct usw_ahead *ahead;
	pthread_t thread;
	struct usw_compressor compressor;
};

struct usw_ahead {
	const struct usw_standby_space *standbys;
	uint32_t wanted; /* threads; 0: none */
	uint32_t started;
	struct usw_ahead_thread threads[USW_AHEAD_THREADS_MAX];
	struct usw_compressor compressor; /* the owner's */
	_Atomic uint32_t dense;           /* how from now on: see usw_compressor_compress() */
	char *objects;                    /* USW_PAGE_BYTES an entry; NULL before the first offer */
	_Atomic bool stopping;
	_Atomic uint32_t sleepers;
	_Atomic uint32_t offered __attribute__((aligned(64))); /* entries, ever; futex */
	_Atomic uint32_t claimed __attribute__((aligned(64))); /* of them looked at by a thread */
	struct usw_ahead_entry entries[USW_AHEAD_ENTRIES];
};

/** `threads` are started with the first offer; if they cannot be, nothing is compressed ahead. */
void usw_ahead_init(struct usw_ahead *ahead, const struct usw_standby_space *standbys,
		    uint32_t threads);
/** Ends the threads, which may be at work on a page. */
void usw_ahead_deinit(struct usw_ahead *ahead);

/** As many as there are processors beside one that evicts. */
uint32_t usw_ahead_default_threads(void);

/** Have pages that are not compressed yet become denser, or not. Owner only. */
void usw_ahead_want(struct usw_ahead *ahead, uint32_t dense);

/**
 * Offer the next page that will leave. Returns what to ask for it with, from 1 on; 0: not taken.
 * Owner only; never waits.
 */
uint32_t usw_ahead_offer(struct usw_ahead *ahead, uint32_t number, uint32_t slot);

/** Wake as many threads as there is work for. After the last of some offers. Owner only. */
void usw_ahead_wake(struct usw_ahead *ahead);

/**
 * The object of a page that was offered, whose bytes are at *ret_bytes until the next offer. NULL:
 * there is none. May compress other pages, and wait for some microseconds. Owner only.
 */
const struct usw_ahead_entry *usw_ahead_take(struct usw_ahead *ahead, uint32_t offer,
					     uint32_t number, uint32_t slot,
					     const char **ret_bytes);

#endif /* USW_AHEAD_H */
