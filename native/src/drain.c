// SPDX-License-Identifier: MIT

/**
 * @file
 * From a standby slot into a segment. See drain.h.
 */

#include "drain.h"

/* Pages that have just left are often asked for again: they are not compressed ahead. */
#define USW_STANDBY_YOUNG 256u

/** Put the object of a standby page into a segment. */
static int store_object(struct usw_session *session, uint32_t number, uint32_t slot, uint32_t id,
			const char *object, uint32_t length, enum usw_codec codec)
{
	struct usw_segments *segments = &session->segments;
	uint64_t place;
	int ret;

	if (codec == USW_CODEC_DENSE)
		ret = usw_segments_append(segments, USW_LOG_FRESH, id, object, length, codec,
					  &place);
	else
		ret = usw_vacancies_store(&session->vacancies, segments, id, object, length, codec,
					  &place);
	if (ret)
		return ret;
	if (!usw_vswap_repoint(&session->vswap, id, USW_BACKEND_MEMORY, usw_place(number, slot),
			       USW_BACKEND_OBJECT, place)) {
		usw_segments_release(segments, usw_place_group(place), usw_place_index(place));
		return 0;
	}
	struct usw_counters *counters = &session->reclaim.counters;
	if (codec == USW_CODEC_STORED)
		usw_count(counters, evicted_incompressible, 1);
	else
		usw_count(counters, evicted_compressed, 1);
	usw_count(counters, evicted_packed, codec == USW_CODEC_DENSE);
	return 0;
}

/** Pages become denser at once where that pays, if nobody may have to wait for it. */
static uint32_t wanted_density(const struct usw_session *session)
{
	bool has_time = usw_session_room(session) >
			atomic_load_explicit(&session->low_pages, memory_order_relaxed) / 2;

	return has_time ? usw_pack_density(&session->packer) : USW_DENSE_NOT;
}

int usw_standby_compress(struct usw_session *session, uint32_t number, uint32_t slot, uint32_t id)
{
	char object[USW_PAGE_BYTES];
	enum usw_codec codec;
	const char *page = usw_standby_page(&session->standbys, number, slot);
	uint32_t length = usw_compressor_compress(&session->ahead.compressor, number, page, object,
						  wanted_density(session), &codec);

	return store_object(session, number, slot, id, object, length, codec);
}

/** True if the ID still resolves to this slot. */
static bool is_slot_of(const struct usw_session *session, uint32_t id, uint32_t number,
		       uint32_t slot)
{
	uint64_t word = usw_vswap_peek(&session->vswap, id);

	return usw_word_backend(word) == USW_BACKEND_MEMORY &&
	       usw_word_place(word) == usw_place(number, slot);
}

/** Make a page that nobody has asked for again an object, if that has not been done ahead. */
static int make_object(struct usw_target *target, uint32_t slot, uint32_t id)
{
	struct usw_session *session = target->session;
	const struct usw_standby *standby = &target->standby;
	const char *bytes;

	usw_ahead_want(&session->ahead, wanted_density(session));
	const struct usw_ahead_entry *entry = usw_ahead_take(&session->ahead, standby->offer[slot],
							     standby->number, slot, &bytes);

	if (!entry)
		return usw_standby_compress(session, standby->number, slot, id);
	usw_count(&session->reclaim.counters, evicted_ahead, entry->is_by_thread);
	return store_object(session, standby->number, slot, id, bytes, entry->length_bytes,
			    entry->codec);
}

/** Offer the pages that leave standby next to the threads that compress ahead. */
static void offer_next(struct usw_target *target)
{
	struct usw_standby *standby = &target->standby;
	struct usw_session *session = target->session;
	uint32_t count = usw_standby_count(standby);
	uint32_t old = count - (uint32_t)usw_min(count, USW_STANDBY_YOUNG);
	uint32_t end = standby->tail + (uint32_t)usw_min(old, USW_AHEAD_ENTRIES);

	if ((int32_t)(standby->tail - standby->offered) > 0)
		standby->offered = standby->tail;
	for (; (int32_t)(end - standby->offered) > 0; standby->offered++) {
		uint32_t slot = standby->offered % standby->capacity;
		uint32_t id = standby->owner[slot];

		if (id && is_slot_of(session, id, standby->number, slot))
			standby->offer[slot] =
				(uint8_t)usw_ahead_offer(&session->ahead, standby->number, slot);
	}
	usw_ahead_wake(&session->ahead);
}

int usw_standby_drain(struct usw_target *target, uint32_t keep, uint32_t max_pages)
{
	struct usw_standby *standby = &target->standby;
	struct usw_session *session = target->session;

	offer_next(target);
	while (usw_standby_count(standby) > keep && max_pages > 0) {
		uint32_t slot = standby->tail % standby->capacity;
		uint32_t id = standby->owner[slot];

		if (id && is_slot_of(session, id, standby->number, slot)) {
			int ret = make_object(target, slot, id);

			if (ret)
				return ret;
			max_pages--;
		}
		standby->owner[slot] = USW_VSWAP_NONE;
		standby->tail++;
	}
	offer_next(target);
	return 0;
}
