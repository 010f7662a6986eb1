// SPDX-License-Identifier: MIT

/**
 * @file
 * Finding and filling dead entries. See vacancy.h.
 */

#include "vacancy.h"
#include "vswap.h"

/* Not looked for while they are less than one part in this of what is held. */
#define USW_VACANCY_SHARE 128u
/* Headers of segments looked at for one search, at most. */
#define USW_VACANCY_ASK 32u

static uint32_t size_of(uint32_t stored_bytes)
{
	return stored_bytes / USW_OBJECT_ALIGN - 1;
}

/** Note the dead entries of a segment; those of a size of which enough are known are left out. */
static void search(struct usw_vacancies *vacancies, const struct usw_segments *segments,
		   uint32_t segment)
{
	uint32_t count = usw_segments_header(segments, segment)->object_count;

	for (uint32_t index = 0; index < count; index++) {
		uint32_t bytes = usw_segments_dead_bytes(segments, segment, index);
		uint8_t *known = bytes ? &vacancies->count[size_of(bytes)] : NULL;

		if (known && *known < USW_VACANCY_DEPTH)
			vacancies->place[size_of(bytes)][(*known)++] = usw_place(segment, index);
	}
}

/** Search the next segment that has vacancies, if one of the next few has. */
static void search_next(struct usw_vacancies *vacancies, const struct usw_segments *segments)
{
	for (uint32_t i = 0; i < USW_VACANCY_ASK; i++) {
		uint32_t segment = vacancies->next_segment;

		if (segment == 0 || segment >= segments->high_water)
			segment = 1;
		vacancies->next_segment = segment + 1;
		if (segment < segments->high_water && usw_segments_has_vacancy(segments, segment)) {
			search(vacancies, segments, segment);
			return;
		}
	}
}

int usw_vacancies_store(struct usw_vacancies *vacancies, struct usw_segments *segments,
			uint32_t owner_id, const void *bytes, uint32_t length_bytes,
			enum usw_codec codec, uint64_t *ret_place)
{
	uint32_t size = size_of(usw_stored_bytes(length_bytes));

	if (!vacancies->is_wanted)
		return usw_segments_append(segments, USW_LOG_LOOSE, owner_id, bytes, length_bytes,
					   codec, ret_place);
	if (!vacancies->count[size] &&
	    usw_segments_garbage_bytes(segments) > segments->used_bytes / USW_VACANCY_SHARE)
		search_next(vacancies, segments);
	while (vacancies->count[size]) {
		uint64_t place = vacancies->place[size][--vacancies->count[size]];

		if (usw_segments_refill(segments, usw_place_group(place), usw_place_index(place),
					owner_id, bytes, length_bytes, codec)) {
			*ret_place = place;
			return 0;
		}
	}
	return usw_segments_append(segments, USW_LOG_LOOSE, owner_id, bytes, length_bytes, codec,
				   ret_place);
}
