// SPDX-License-Identifier: MIT

/**
 * @file
 * Clusters: pages that come in together with their neighbour, because faults are dense there.
 *
 * A program that turns to another part of its memory touches that in no order, so that no stream
 * foresees it, and yet nearly all of it. What tells is density: blocks of memory where many of the
 * last faults fell. In those, the pages around a fault come in with it. Faults that are spread
 * evenly over all memory reach the threshold once in hundreds of times.
 *
 * Whether it pays is measured, not assumed. Of some clusters one page, chosen by chance, is left
 * out. If the program asks for it soon, the others were wanted too; else they were not. While most
 * are not asked for, only a few clusters are brought in, to see whether that has changed.
 *
 * Pure bookkeeping, no memory is touched. The owner is the target's fault thread; no lock.
 */

#ifndef USW_CLUSTER_H
#define USW_CLUSTER_H

#include "base.h"

/** Pages of a cluster, aligned to their number: what the kernel reads ahead of a swap-in, too. */
#define USW_CLUSTER_PAGES 8u
#define USW_CLUSTER_BLOCKS 1024u
#define USW_CLUSTER_TRIALS 64u

/** How many of the last faults fell into one block of memory. */
struct usw_cluster_block {
	uint32_t number; /* of the block, from address 0 */
	uint32_t faults : 4;
	uint32_t since : 28; /* clock when it was last halved */
};

/** A page that was left out. */
struct usw_cluster_trial {
	uint64_t page; /* number; 0: none */
	uint32_t since;
};

struct usw_clusters {
	struct usw_cluster_block blocks[USW_CLUSTER_BLOCKS];
	struct usw_cluster_trial trials[USW_CLUSTER_TRIALS];
	uint32_t clock;  /* faults so far */
	uint32_t dense;  /* of them, those in dense blocks */
	uint32_t wanted; /* share of the pages left out that were asked for soon, in 1/65536 */
};

void usw_clusters_init(struct usw_clusters *clusters);

/**
 * Learn from a fault on page number `page`. True: the cluster it is in is to be brought in. Then
 * one of its other pages that are missing is to be left out if `ret_is_trial`, by
 * usw_clusters_leave_out(). `resident_pages` are those that may be resident.
 */
bool usw_clusters_note(struct usw_clusters *clusters, uint64_t page, uint64_t resident_pages,
		       bool *ret_is_trial);

/** Choose by chance which of `count` missing pages is left out of a cluster; its index. */
uint32_t usw_clusters_choose(const struct usw_clusters *clusters, uint32_t count);

/** True if a page is left out, and nobody has asked for it yet. */
bool usw_clusters_is_left_out(struct usw_clusters *clusters, uint64_t page);

void usw_clusters_leave_out(struct usw_clusters *clusters, uint64_t page);

/** How many of `count` pages that come in with others are wanted, by the last trials. */
uint32_t usw_clusters_wanted(const struct usw_clusters *clusters, uint32_t count);

#endif /* USW_CLUSTER_H */
