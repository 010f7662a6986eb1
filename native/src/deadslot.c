// SPDX-License-Identifier: MIT

/**
 * @file
 * Giving slots back. See deadslot.h.
 */

#include <stdlib.h>

#include "deadslot.h"
#include "mover.h"

/** Let the mover give a slot back. False: it has too many to give already. */
static bool queue_dead(struct usw_tiers *tiers, const struct usw_dead_slot *dead)
{
	pthread_mutex_lock(&tiers->lock);
	bool is_full = tiers->dead_head - tiers->dead_tail == USW_DEAD_SLOTS_MAX;
	if (!is_full)
		tiers->dead[tiers->dead_head++ % USW_DEAD_SLOTS_MAX] = *dead;
	pthread_mutex_unlock(&tiers->lock);
	if (!is_full)
		usw_mover_wake(tiers);
	return !is_full;
}

/**
 * A file that leaves as a whole needs no holes; to punch one waits for all reads under way, and
 * holds up those that follow.
 */
static bool goes_with_its_file(const struct usw_tiers *tiers, const struct usw_dead_slot *dead)
{
	const struct usw_tier *tier = &tiers->at[dead->tier];

	return atomic_load(&tier->state) == USW_TIER_LEAVING && tier->kind != USW_TIER_KIND_DEVICE;
}

/** False: no memory. */
static bool hold_back(struct usw_tiers *tiers, const struct usw_dead_slot *dead)
{
	if (tiers->held_back_count == tiers->held_back_capacity) {
		uint32_t capacity = tiers->held_back_capacity * 2 + 256;
		void *bigger = realloc(tiers->held_back, capacity * sizeof(*tiers->held_back));

		if (!bigger)
			return false;
		tiers->held_back = bigger;
		tiers->held_back_capacity = capacity;
	}
	tiers->held_back[tiers->held_back_count++] = *dead;
	return true;
}

/** The owner says that a slot holds nothing any more. */
void usw_deadslots_note(void *context, uint64_t where, uint32_t segment)
{
	struct usw_tiers *tiers = context;
	const struct usw_segment *h = usw_segments_header(tiers->segments, segment);
	struct usw_dead_slot dead = {
		.tier = usw_where_tier(where),
		.slot = usw_where_slot(where),
		.length_bytes = usw_disk_length(h),
	};

	if (usw_tiers_has_tags(tiers, h))
		usw_tags_give(&tiers->tags, segment);

	// When a target ends, thousands die at once: what the mover has no place for waits here, or
	// this thread would be busy with holes for seconds.
	bool is_queued = !goes_with_its_file(tiers, &dead) && queue_dead(tiers, &dead);
	if (!is_queued && !hold_back(tiers, &dead))
		usw_disk_give(tiers->at[dead.tier].disk, dead.slot, dead.length_bytes);
}

/** Slots that were held back for a tier that leaves. */
uint32_t usw_deadslots_held_back(const struct usw_tiers *tiers, uint32_t number)
{
	uint32_t count = 0;

	for (uint32_t i = 0; i < tiers->held_back_count; i++)
		count += tiers->held_back[i].tier == number;
	return count;
}

/** The file is gone, and with it its slots. */
void usw_deadslots_drop(struct usw_tiers *tiers, uint32_t number)
{
	uint32_t left = 0;

	for (uint32_t i = 0; i < tiers->held_back_count; i++)
		if (tiers->held_back[i].tier != number)
			tiers->held_back[left++] = tiers->held_back[i];
	tiers->held_back_count = left;
}

/** What waits for the mover, or is of a tier that stays after all, as fast as the mover can give. */
void usw_deadslots_give(struct usw_tiers *tiers)
{
	uint32_t i = 0;

	while (i < tiers->held_back_count) {
		struct usw_dead_slot *dead = &tiers->held_back[i];

		if (goes_with_its_file(tiers, dead)) {
			i++;
			continue;
		}
		if (!queue_dead(tiers, dead))
			return;
		*dead = tiers->held_back[--tiers->held_back_count];
	}
}
