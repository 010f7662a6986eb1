// SPDX-License-Identifier: MIT

/**
 * @file
 * Emptying the emptiest segment. See compact.h.
 */

#include <errno.h>

#include "compact.h"

/** Move one live object to the open segment; 0 also if it died meanwhile. */
static int move_object(struct usw_vswap *vswap, uint32_t id, uint32_t segment, uint32_t index)
{
	struct usw_object object;
	uint64_t new_place;

	if (!usw_segments_find(vswap->segments, segment, index, &object))
		return 0;
	int ret = usw_segments_append(vswap->segments, id, object.bytes, object.length_bytes,
				      object.codec, &new_place);
	if (ret)
		return ret;
	if (usw_vswap_repoint(vswap, id, USW_BACKEND_OBJECT, usw_place(segment, index),
			      USW_BACKEND_OBJECT, new_place))
		usw_segments_release(vswap->segments, segment, index);
	else
		usw_segments_release(vswap->segments, usw_place_group(new_place),
				     usw_place_index(new_place));
	return 0;
}

int usw_compact_one(struct usw_vswap *vswap)
{
	uint32_t segment = usw_segments_emptiest(vswap->segments);

	if (!segment)
		return 0;
	for (uint32_t index = 0; index < USW_SEGMENT_OBJECTS; index++) {
		uint32_t id = usw_segments_owner(vswap->segments, segment, index);

		if (!id)
			continue;
		int ret = move_object(vswap, id, segment, index);
		if (ret)
			return ret;
	}
	vswap->segments->compacted_segments++;
	usw_segments_reap(vswap->segments);
	return 1;
}
