// SPDX-License-Identifier: MIT

/**
 * @file
 * Compressing cold segments denser. See pack.h.
 */

#include <errno.h>
#include <stdlib.h>

#include "compact.h"
#include "dictionary.h"
#include "futex.h"
#include "pack.h"
#include "priority.h"

/* Segments in RAM of which one is left as it is: the youngest, whose objects are asked for most. */
#define USW_YOUNG_SHARE 16u
/* After a segment the thread rests so many times as long as it has worked. */
#define USW_PACK_REST 1u
/* Where nothing is cold, it is looked for again after so long. */
#define USW_PACK_LOOK_NS 10000000u
/* An object takes some microseconds, if the thread runs at all. */
#define USW_PACK_HOPE_NS 1000000000u
/* Segments between two dictionaries, at first; as many again each time. */
#define USW_RENEWAL_INTERVAL 4u

// --- The thread ---------------------------------------------------------------------------------

static enum usw_filter filter_of(const struct usw_object *object)
{
	return (enum usw_filter)(object->codec - USW_CODEC_LZ4);
}

static bool is_loose(const struct usw_object *object)
{
	return object->codec != USW_CODEC_DENSE && object->codec != USW_CODEC_STORED;
}

/** Pages of the segment as the encoder will see them, spread over it. Returns how many. */
static uint32_t take_samples(const struct usw_packer *packer, char *pages)
{
	const struct usw_segments *segments = packer->vswap->segments;
	uint32_t end = usw_segments_header(segments, packer->segment)->object_count;
	uint32_t step = end / USW_DICTIONARY_PAGES + 1;
	uint32_t count = 0;

	for (uint32_t index = 0; index < end; index += step) {
		_Alignas(16) char page[USW_PAGE_BYTES];
		struct usw_object object;

		if (usw_segments_find(segments, packer->segment, index, &object) &&
		    is_loose(&object) &&
		    !usw_codec_decompress(object.codec, object.bytes, object.length_bytes, page))
			usw_filter_apply(filter_of(&object), page,
					 pages + (size_t)count++ * USW_PAGE_BYTES);
	}
	return count;
}

/** Make a dictionary of the segment if there is none, or none that serves; more and more rarely. */
static void renew_dictionary(struct usw_packer *packer)
{
	if (!packer->may_renew || usw_dense_encoder_is_served(packer->encoder))
		return;
	if (packer->until_renewal) {
		packer->until_renewal--;
		return;
	}
	char *pages = malloc((size_t)USW_DICTIONARY_PAGES * USW_PAGE_BYTES);
	uint32_t number = pages ? usw_dictionary_make(pages, take_samples(packer, pages)) : 0;

	free(pages);
	if (number)
		atomic_store_explicit(&packer->dictionary, number, memory_order_release);
	packer->until_renewal = packer->renewal_interval;
	packer->renewal_interval *= 2;
}

/**
 * Compress one object again. Returns its length, 0 if it is to stay as it is: also if it is not what
 * its owner's hash says, for a reader has to find that out.
 */
static uint32_t pack_object(const struct usw_packer *packer, struct usw_dense_encoder *encoder,
			    const struct usw_object *object, char *packed, uint32_t room_bytes)
{
	_Alignas(16) char page[USW_PAGE_BYTES];
	uint32_t worth = usw_dense_worth(object->length_bytes);

	if (!is_loose(object) || worth > room_bytes ||
	    usw_codec_decompress(object->codec, object->bytes, object->length_bytes, page) ||
	    usw_codec_hash(page, packer->hash_seed) !=
		    usw_vswap_hash(packer->vswap, object->owner_id))
		return 0;
	usw_dense_encoder_use(encoder,
			      atomic_load_explicit(&packer->dictionary, memory_order_acquire));
	// The filter that served it best with LZ4.
	return usw_dense_compress(encoder, filter_of(object), page, packed, worth);
}

void usw_pack_segment(struct usw_packer *packer)
{
	struct usw_segments *segments = packer->vswap->segments;
	uint32_t end = usw_segments_header(segments, packer->segment)->object_count;
	uint64_t start_ns = usw_processor_ns();
	uint32_t at = 0;

	renew_dictionary(packer);
	packer->count = 0;
	for (uint32_t index = 0; index < end && !atomic_load(&packer->stopping); index++) {
		struct usw_object object;

		atomic_store_explicit(&packer->at, index + 1, memory_order_relaxed);
		if (!usw_segments_find(segments, packer->segment, index, &object))
			continue;
		usw_priority_yield();
		uint32_t length = pack_object(packer, packer->encoder, &object, packer->bytes + at,
					      USW_SEGMENT_BYTES - at);

		packer->objects[packer->count++] = (struct usw_packed){
			.id = object.owner_id,
			.offset_bytes = at,
			.length_bytes = (uint16_t)length,
			.index = (uint16_t)index,
		};
		at += length;
	}
	packer->busy_ns = usw_processor_ns() - start_ns;
}

static void *packer_main(void *argument)
{
	struct usw_packer *packer = argument;

	usw_priority_wait();
	while (!atomic_load(&packer->stopping)) {
		uint32_t stage = atomic_load_explicit(&packer->stage, memory_order_acquire);

		if (stage != USW_PACK_ASKED) {
			usw_futex_wait(&packer->stage, stage, NULL);
			continue;
		}
		usw_pack_segment(packer);
		atomic_store_explicit(&packer->stage, USW_PACK_DONE, memory_order_release);
		packer->done(packer->context);
	}
	return NULL;
}

// --- The owner ----------------------------------------------------------------------------------

void usw_packer_init(struct usw_packer *packer, struct usw_vswap *vswap, uint64_t hash_seed,
		     void (*done)(void *context), void *context)
{
	*packer = (struct usw_packer){
		.vswap = vswap,
		.hash_seed = hash_seed,
		.done = done,
		.context = context,
		.renewal_interval = USW_RENEWAL_INTERVAL,
	};
}

void usw_packer_deinit(struct usw_packer *packer)
{
	if (packer->is_started) {
		atomic_store(&packer->stopping, true);
		// It looks at `stopping` and then sleeps while the stage is what it has seen.
		atomic_store(&packer->stage, USW_PACK_ENDED);
		usw_futex_wake(&packer->stage, 1);
		usw_priority_wait_no_more(packer->thread);
		pthread_join(packer->thread, NULL);
	}
	if (packer->segment)
		usw_segments_header(packer->vswap->segments, packer->segment)->is_moving = false;
	if (packer->own.segment)
		usw_segments_header(packer->vswap->segments, packer->own.segment)->is_moving =
			false;
	usw_dense_encoder_destroy(packer->encoder);
	usw_dense_encoder_destroy(packer->own.encoder);
	free(packer->bytes);
	free(packer->objects);
	packer->encoder = NULL;
	packer->own = (struct usw_pack_own){0};
	packer->bytes = NULL;
	packer->objects = NULL;
	packer->is_started = false;
	packer->segment = 0;
}

int usw_pack_prepare(struct usw_packer *packer)
{
	int ret = usw_dense_prepare();

	if (ret)
		return ret;
	packer->encoder = usw_dense_encoder_create();
	packer->bytes = malloc(USW_SEGMENT_BYTES);
	packer->objects = malloc(USW_SEGMENT_OBJECTS * sizeof(*packer->objects));
	return packer->encoder && packer->bytes && packer->objects ? 0 : -ENOMEM;
}

static bool start(struct usw_packer *packer)
{
	if (packer->is_started)
		return true;
	packer->is_started = usw_pack_prepare(packer) == 0 &&
			     pthread_create(&packer->thread, NULL, packer_main, packer) == 0;
	packer->is_impossible = !packer->is_started;
	if (packer->is_started)
		pthread_setname_np(packer->thread, "uffdswap-packer");
	return packer->is_started;
}

/** Move an object in its new form, or as it is if that has no length. -ENOSPC. */
static int move_as(struct usw_packer *packer, uint32_t segment, uint32_t index,
		   struct usw_object object, const char *packed, uint32_t length_bytes)
{
	if (length_bytes) {
		object.bytes = packed;
		object.length_bytes = (uint16_t)length_bytes;
		object.codec = USW_CODEC_DENSE;
		atomic_fetch_add_explicit(&packer->packed_pages, 1, memory_order_relaxed);
	}
	return usw_compact_move(packer->vswap, segment, index, &object, true);
}

/** 0 also if it died meanwhile. */
static int move_packed(struct usw_packer *packer, const struct usw_packed *packed)
{
	struct usw_object object;

	if (!usw_segments_find(packer->vswap->segments, packer->segment, packed->index, &object) ||
	    object.owner_id != packed->id)
		return 0;
	return move_as(packer, packer->segment, packed->index, object,
		       packer->bytes + packed->offset_bytes, packed->length_bytes);
}

/** The coldest segment that is worth it, nobody else's from now on; 0: there is none. */
static uint32_t take_segment(struct usw_packer *packer)
{
	struct usw_segments *segments = packer->vswap->segments;
	uint32_t loose, all;
	uint32_t segment = usw_segments_coldest_loose(segments, &loose, &all);

	if (!segment || (packer->need == USW_PACK_COLD && loose <= all / USW_YOUNG_SHARE))
		return 0;
	usw_segments_header(segments, segment)->is_moving = true;
	return segment;
}

/** What was in it has moved, or stays. */
static void give_segment(struct usw_packer *packer, uint32_t segment)
{
	struct usw_segments *segments = packer->vswap->segments;

	usw_segments_header(segments, segment)->is_moving = false;
	atomic_store_explicit(&segments->some_empty, true, memory_order_relaxed);
	usw_segments_reap(segments);
}

bool usw_pack_move_some(struct usw_packer *packer)
{
	uint32_t end = (uint32_t)usw_min(packer->count, packer->moved + USW_PACK_STEP_OBJECTS);

	while (packer->moved < end) {
		if (!move_packed(packer, &packer->objects[packer->moved++]))
			continue;
		// No segment is left: the rest stays, and it would be the same again.
		packer->moved = packer->count;
		packer->is_impossible = true;
	}
	if (packer->moved < packer->count)
		return true;
	give_segment(packer, packer->segment);
	packer->segment = 0;
	packer->after_ns = usw_now_ns() + USW_PACK_REST * packer->busy_ns;
	atomic_store_explicit(&packer->stage, USW_PACK_IDLE, memory_order_relaxed);
	return false;
}

static void begin(struct usw_packer *packer)
{
	uint32_t segment = take_segment(packer);

	if (!segment) {
		packer->after_ns = usw_now_ns() + USW_PACK_LOOK_NS;
		return;
	}
	if (!start(packer)) {
		give_segment(packer, segment);
		return;
	}
	packer->segment = segment;
	packer->moved = 0;
	packer->may_renew = packer->need == USW_PACK_COLD;
	atomic_store_explicit(&packer->at, 0, memory_order_relaxed);
	packer->seen_at = 0;
	packer->seen_ns = usw_now_ns();
	atomic_store_explicit(&packer->stage, USW_PACK_ASKED, memory_order_release);
	usw_futex_wake(&packer->stage, 1);
}

/** What the owner has not packed yet stays as it is. */
static void end_own(struct usw_packer *packer)
{
	give_segment(packer, packer->own.segment);
	packer->own.segment = 0;
}

static bool is_due(const struct usw_packer *packer)
{
	return !packer->is_impossible &&
	       (packer->need == USW_PACK_ALL ||
		(packer->need == USW_PACK_COLD && usw_now_ns() >= packer->after_ns));
}

bool usw_pack_step(struct usw_packer *packer, enum usw_pack_need need)
{
	uint32_t stage = atomic_load_explicit(&packer->stage, memory_order_acquire);

	packer->need = need;
	// Where nothing is wanted it would stay the owner's, and others wait for it.
	if (need == USW_PACK_NOT && packer->own.segment)
		end_own(packer);
	if (stage == USW_PACK_DONE && usw_pack_move_some(packer))
		return true;
	if (atomic_load_explicit(&packer->stage, memory_order_relaxed) == USW_PACK_IDLE &&
	    is_due(packer))
		begin(packer);
	return false;
}

static bool begin_own(struct usw_packer *packer)
{
	struct usw_pack_own *own = &packer->own;

	if (packer->need == USW_PACK_NOT || packer->is_impossible || usw_now_ns() < own->after_ns)
		return false;
	if (!own->encoder && usw_dense_prepare() == 0)
		own->encoder = usw_dense_encoder_create();
	packer->is_impossible = !own->encoder;
	own->segment = own->encoder ? take_segment(packer) : 0;
	own->index = 0;
	if (!own->segment)
		own->after_ns = usw_now_ns() + USW_PACK_LOOK_NS;
	return own->segment;
}

bool usw_pack_one(struct usw_packer *packer)
{
	const struct usw_segments *segments = packer->vswap->segments;
	struct usw_pack_own *own = &packer->own;
	char packed[USW_PAGE_BYTES];
	struct usw_object object;

	if (!own->segment && !begin_own(packer))
		return false;
	uint32_t end = usw_segments_header(segments, own->segment)->object_count;
	while (own->index < end) {
		uint32_t index = own->index++;

		if (!usw_segments_find(segments, own->segment, index, &object))
			continue;
		uint32_t length =
			pack_object(packer, own->encoder, &object, packed, sizeof(packed));
		if (move_as(packer, own->segment, index, object, packed, length)) {
			own->index = end; // as in usw_pack_move_some()
			packer->is_impossible = true;
		}
		return true;
	}
	end_own(packer);
	return true;
}

uint32_t usw_pack_density(const struct usw_packer *packer)
{
	// What has begun can be read: there are decoders.
	return packer->need == USW_PACK_COLD && packer->is_started
		       ? atomic_load_explicit(&packer->dictionary, memory_order_acquire)
		       : USW_DENSE_NOT;
}

bool usw_pack_is_hopeful(struct usw_packer *packer)
{
	uint32_t at = atomic_load_explicit(&packer->at, memory_order_relaxed);
	uint32_t stage = atomic_load_explicit(&packer->stage, memory_order_relaxed);

	if (!packer->segment || stage == USW_PACK_DONE)
		return packer->segment;
	if (at != packer->seen_at) {
		packer->seen_at = at;
		packer->seen_ns = usw_now_ns();
	}
	return usw_now_ns() - packer->seen_ns < USW_PACK_HOPE_NS;
}
