// SPDX-License-Identifier: MIT

/**
 * @file
 * Emptying the emptiest segment. See compact.h.
 */

#include "compact.h"

/** A packed segment is as warm as the warmest of what was moved there. Whole pages go elsewhere. */
static void inherit(struct usw_segments *segments, uint64_t place, uint32_t touched)
{
	struct usw_segment *h = usw_segments_header(segments, usw_place_group(place));
	uint32_t own = atomic_load_explicit(&h->touched, memory_order_relaxed);

	if (!h->is_dense)
		return;
	if (usw_place_index(place) == 0 || (int32_t)(touched - own) > 0)
		atomic_store_explicit(&h->touched, touched, memory_order_relaxed);
}

int usw_compact_move(struct usw_vswap *vswap, uint32_t segment, uint32_t index,
		     const struct usw_object *object, bool is_dense)
{
	struct usw_segments *segments = vswap->segments;
	uint32_t id = object->owner_id;
	uint64_t new_place;
	int ret = usw_segments_append(segments, is_dense ? USW_LOG_DENSE : USW_LOG_LOOSE, id,
				      object->bytes, object->length_bytes, object->codec,
				      &new_place);
	if (ret)
		return ret;
	if (is_dense)
		inherit(segments, new_place,
			atomic_load_explicit(&usw_segments_header(segments, segment)->touched,
					     memory_order_relaxed));
	if (usw_vswap_repoint(vswap, id, USW_BACKEND_OBJECT, usw_place(segment, index),
			      USW_BACKEND_OBJECT, new_place))
		usw_segments_release(segments, segment, index);
	else
		usw_segments_release(segments, usw_place_group(new_place),
				     usw_place_index(new_place));
	return 0;
}

int usw_compact_one(struct usw_vswap *vswap)
{
	uint32_t segment = usw_segments_emptiest(vswap->segments);

	if (!segment)
		return 0;
	const struct usw_segment *h = usw_segments_header(vswap->segments, segment);
	for (uint32_t index = 0; index < h->object_count; index++) {
		struct usw_object object;

		if (!usw_segments_find(vswap->segments, segment, index, &object))
			continue;
		int ret = usw_compact_move(vswap, segment, index, &object, h->is_dense);
		if (ret)
			return ret;
	}
	vswap->segments->compacted_segments++;
	usw_segments_reap(vswap->segments);
	return 1;
}
