// SPDX-License-Identifier: MIT

/**
 * @file
 * Vacancies: dead entries of segments in RAM, for new objects of the same stored size.
 *
 * Where a program touches its memory at random, each page that comes in leaves a dead object
 * somewhere and each that leaves needs a place. A log answers with garbage, an eighth of what it
 * stores, and with copying four bytes for each that is new. A dead entry whose object was as long,
 * in units of 8 bytes, takes the new one as it is: no entry behind it changes its place. Some
 * thousand of them are enough for there to be one of nearly every size.
 *
 * Dead entries are not told of: they are looked for, one segment at a time, when the last known one
 * of a size is taken. What is known may be out of date; a place is looked at before it is used.
 *
 * It mixes pages that left at different times, so it is only for segments that no disk waits for.
 * Owner of the segments only, no lock.
 */

#ifndef USW_VACANCY_H
#define USW_VACANCY_H

#include "segment.h"

#define USW_VACANCY_SIZES (USW_PAGE_BYTES / USW_OBJECT_ALIGN)
/** Known of one size, at most. */
#define USW_VACANCY_DEPTH 16u

struct usw_vacancies {
	bool is_wanted;        /* else objects are only appended */
	uint32_t next_segment; /* to be searched */
	uint8_t count[USW_VACANCY_SIZES];
	uint64_t place[USW_VACANCY_SIZES][USW_VACANCY_DEPTH]; /* as in usw_place() */
};

/** As usw_segments_append(), into a vacancy if there is one. */
int usw_vacancies_store(struct usw_vacancies *vacancies, struct usw_segments *segments,
			uint32_t owner_id, const void *bytes, uint32_t length_bytes,
			enum usw_codec codec, uint64_t *ret_place);

#endif /* USW_VACANCY_H */
