// SPDX-License-Identifier: MIT

/**
 * @file
 * From a slot into RAM. See landing.h.
 */

#include <errno.h>
#include <string.h>

#include "landing.h"

/* So much is opened before it is written to RAM: it stays in the processor's cache. */
#define USW_LANDING_BYTES 65536u

/** What comes up gathers here, as it lies in RAM, on its way into its segment. */
struct landing {
	int fd;
	const struct usw_tiers *tiers;
	struct usw_sealer *sealer; /* NULL: nothing is sealed */
	uint64_t to;               /* where the first byte goes in the space of segments */
	uint32_t filled_bytes;     /* what has gathered */
	char bytes[USW_LANDING_BYTES];
};

/**
 * Write what has gathered. To a place that has no memory yet that is half the work of touching
 * each page of a mapping: nothing is zeroed first, and no page table is filled. 0 or -errno.
 */
static int flush_landing(struct landing *landing)
{
	uint32_t done = 0;

	while (done < landing->filled_bytes) {
		ssize_t moved = pwrite(landing->fd, landing->bytes + done,
				       landing->filled_bytes - done, (off_t)(landing->to + done));

		if (moved < 0 && errno == EINTR)
			continue;
		if (moved <= 0)
			return moved ? -errno : -ENOSPC;
		done += (uint32_t)moved;
	}
	landing->to += done;
	landing->filled_bytes = 0;
	return 0;
}

/** Zeros up to `end`: where nothing lives any more, and between objects. 0 or -errno. */
static int skip_to(struct landing *landing, uint64_t end)
{
	int ret = 0;

	while (!ret && landing->to + landing->filled_bytes < end) {
		uint64_t missing = end - landing->to - landing->filled_bytes;
		uint32_t length =
			(uint32_t)usw_min(missing, USW_LANDING_BYTES - landing->filled_bytes);

		memset(landing->bytes + landing->filled_bytes, 0, length);
		landing->filled_bytes += length;
		if (landing->filled_bytes == USW_LANDING_BYTES)
			ret = flush_landing(landing);
	}
	return ret;
}

/**
 * Open one object into what gathers. What cannot be opened becomes zeros, which the page's hash
 * refuses when it is asked for. 0, or -errno if there is no memory for it.
 */
static int land(struct landing *landing, struct usw_move *move, uint32_t index,
		struct usw_object *object)
{
	uint64_t start = usw_ram_slot_offset(usw_where_slot(move->to)) + object->offset_bytes;
	int ret = skip_to(landing, start);

	if (!ret && landing->filled_bytes + object->length_bytes > USW_LANDING_BYTES)
		ret = flush_landing(landing);
	if (ret)
		return ret;
	const char *in = move->buffer + usw_disk_object_offset(object, index);
	char *out = landing->bytes + landing->filled_bytes;

	landing->filled_bytes += object->length_bytes;
	if (!landing->sealer) {
		memcpy(out, in, object->length_bytes);
		return 0;
	}
	object->where = move->from;
	if (usw_tier_unseal(landing->tiers, landing->sealer, move->segment, index, object, in,
			    out)) {
		memset(out, 0, object->length_bytes);
		move->damaged[index / 64] |= (uint64_t)1 << (index % 64);
	}
	return 0;
}

int usw_land(struct usw_tiers *tiers, struct usw_sealer *sealer, struct usw_move *move,
	     void (*look)(struct usw_tiers *tiers))
{
	struct usw_segments *segments = tiers->segments;
	const struct usw_segment *h = usw_segments_header(segments, move->segment);
	uint64_t start = usw_ram_slot_offset(usw_where_slot(move->to));
	struct landing landing;
	struct usw_object object;
	int ret = 0;

	landing.fd = segments->data.fd;
	landing.tiers = tiers;
	landing.sealer = tiers->is_sealed ? sealer : NULL;
	landing.to = start;
	landing.filled_bytes = 0;
	for (uint32_t index = 0; !ret && index < h->object_count; index++) {
		if (look && index % USW_LOOK_OBJECTS == 0)
			look(tiers);
		if (usw_segments_find(segments, move->segment, index, &object))
			ret = land(&landing, move, index, &object);
	}
	if (!ret)
		ret = skip_to(&landing, start + h->append_bytes);
	if (!ret)
		ret = flush_landing(&landing);
	if (ret) // what is there already would be held for nothing, and by no account
		usw_space_punch(&segments->data, start, USW_SEGMENT_BYTES);
	return ret;
}
