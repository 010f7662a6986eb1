// SPDX-License-Identifier: MIT

/**
 * @file
 * Clusters around faults. See cluster.h.
 */

#include <string.h>

#include "cluster.h"

#define USW_BLOCK_PAGES 64u
/* A block is dense that had so many of the last faults ... */
#define USW_DENSE_FAULTS 4u
#define USW_FAULTS_MAX 15u
/* ... which are as many as this share of the resident pages: if faults fell evenly everywhere, a block
   would have one of them at the most. */
#define USW_EPOCH_SHARE 64u
#define USW_EPOCH_MIN 16u
#define USW_EPOCH_MAX 16384u
/* A page that was left out has been asked for soon if it was before so many epochs are over. */
#define USW_SOON_EPOCHS 8u
/* How much the last trial counts; clusters come in while half of the trials are wanted. */
#define USW_WANTED_SHIFT 4
#define USW_WANTED_ONE 65536u
#define USW_WANTED_MIN (USW_WANTED_ONE / 2)
/* One fault in so many in a dense block is a trial: while it pays, and while it does not. */
#define USW_TRIAL_EVERY 8u
#define USW_PROBE_EVERY 64u

void usw_clusters_init(struct usw_clusters *clusters)
{
	memset(clusters, 0, sizeof(*clusters));
	clusters->wanted = USW_WANTED_MIN;
}

/** Count a fault into its block. True: the block is dense. */
static bool count_in_block(struct usw_clusters *clusters, uint64_t page, uint32_t epoch)
{
	uint32_t number = (uint32_t)(page / USW_BLOCK_PAGES);
	uint32_t clock = clusters->clock & 0xfffffff;
	struct usw_cluster_block *block = &clusters->blocks[number % USW_CLUSTER_BLOCKS];
	uint32_t epochs = ((clock - block->since) & 0xfffffff) / epoch;

	if (block->number != number) {
		if (block->faults > 1 && !epochs) {
			block->faults--; // a stray fault does not drive a dense block out
			return false;
		}
		*block = (struct usw_cluster_block){.number = number, .since = clock, .faults = 1};
		return false;
	}
	if (epochs) {
		block->faults = epochs > 3 ? 0 : block->faults >> epochs;
		block->since = clock;
	}
	block->faults += block->faults < USW_FAULTS_MAX;
	return block->faults >= USW_DENSE_FAULTS;
}

static void learn(struct usw_clusters *clusters, bool is_wanted)
{
	clusters->wanted -= clusters->wanted >> USW_WANTED_SHIFT;
	if (is_wanted)
		clusters->wanted += USW_WANTED_ONE >> USW_WANTED_SHIFT;
}

static struct usw_cluster_trial *trial_of(struct usw_clusters *clusters, uint64_t page)
{
	return &clusters->trials[page / USW_CLUSTER_PAGES % USW_CLUSTER_TRIALS];
}

/**
 * True if a trial can be noted for the cluster of a page. One that is over without a fault ends.
 */
static bool has_place(struct usw_clusters *clusters, uint64_t page, uint32_t soon)
{
	struct usw_cluster_trial *trial = trial_of(clusters, page);

	if (!trial->page)
		return true;
	if (clusters->clock - trial->since < soon)
		return false;
	learn(clusters, false);
	trial->page = 0;
	return true;
}

bool usw_clusters_note(struct usw_clusters *clusters, uint64_t page, uint64_t resident_pages,
		       bool *ret_is_trial)
{
	uint64_t share = usw_min(resident_pages / USW_EPOCH_SHARE, USW_EPOCH_MAX);
	uint32_t epoch = (uint32_t)usw_max(share, USW_EPOCH_MIN);
	uint32_t soon = epoch * USW_SOON_EPOCHS;
	struct usw_cluster_trial *trial = trial_of(clusters, page);

	clusters->clock++;
	*ret_is_trial = false;
	if (trial->page == page) {
		learn(clusters, clusters->clock - trial->since < soon);
		trial->page = 0;
	}
	if (!count_in_block(clusters, page, epoch))
		return false;
	bool pays = clusters->wanted >= USW_WANTED_MIN;
	uint32_t every = pays ? USW_TRIAL_EVERY : USW_PROBE_EVERY;

	*ret_is_trial = clusters->dense++ % every == 0 && has_place(clusters, page, soon);
	return pays || *ret_is_trial;
}

uint32_t usw_clusters_choose(const struct usw_clusters *clusters, uint32_t count)
{
	// The high bits of a product by a large odd number: Knuth's multiplicative hashing.
	return (clusters->clock * 2654435761u >> 16) % count;
}

bool usw_clusters_is_left_out(struct usw_clusters *clusters, uint64_t page)
{
	return trial_of(clusters, page)->page == page;
}

void usw_clusters_leave_out(struct usw_clusters *clusters, uint64_t page)
{
	*trial_of(clusters, page) =
		(struct usw_cluster_trial){.page = page, .since = clusters->clock};
}

uint32_t usw_clusters_wanted(const struct usw_clusters *clusters, uint32_t count)
{
	return (uint32_t)((uint64_t)count * clusters->wanted / USW_WANTED_ONE);
}
