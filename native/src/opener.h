// SPDX-License-Identifier: MIT

/**
 * @file
 * The opener: a thread that opens segments which the mover has read.
 *
 * To open a megabyte and to give it memory takes longer than a fast disk needs to read it. The
 * opener takes one segment at a time; what comes while it is at work the mover opens itself. It has
 * a sealer of its own, for the same key.
 *
 * Threads: the mover hands over; the control thread starts and stops. No lock is held.
 */

#ifndef USW_OPENER_H
#define USW_OPENER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "seal.h"

struct usw_tiers;
struct usw_move;

/** Two bits. */
enum usw_opener_work { USW_OPENER_HAS = 1, USW_OPENER_ENDS = 2 };

struct usw_opener {
	pthread_t thread;
	bool is_started;
	struct usw_tiers *tiers;
	struct usw_sealer sealer;
	struct usw_move *move; /* the opener's while it has one */
	_Atomic uint32_t work; /* futex; of enum usw_opener_work */
};

/** Start it. Where that fails there is none, and nothing is ever taken. */
void usw_opener_start(struct usw_opener *opener, struct usw_tiers *tiers);

/** Stop it, once it is through with what it has. Nothing happens if it was not started. */
void usw_opener_stop(struct usw_opener *opener);

/**
 * Give it a move whose read is through; it says when that is done. False: it is at work already.
 * The mover calls.
 */
bool usw_opener_take(struct usw_opener *opener, struct usw_move *move);

#endif /* USW_OPENER_H */
