// SPDX-License-Identifier: MIT

/**
 * @file
 * Goal: packing makes objects shorter and changes no page, whatever is released, damaged or read
 * meanwhile; what is denser is safe to read whatever it holds.
 * Method: known pages in segments, packed on the test's own thread at every point at which
 * something else may happen; then with the real thread. Readers beside it: test_compact.c.
 */

#include <errno.h>
#include <sys/mman.h>

#include "check.h"
#include "compact.h"
#include "pack.h"

#define IDS 32768u

static struct usw_segments segments;
static struct usw_vswap vswap;
static struct usw_packer packer;
static uint64_t vocabulary; /* pages are of its words; 0: of all kinds, as in kind_of() */
static uint32_t ids[IDS];
static uint32_t count;

static void on_done(void *context)
{
	(void)context;
}

static enum check_kind kind_of(uint32_t number)
{
	static const enum check_kind kinds[] = {CHECK_TEXT, CHECK_TEXT, CHECK_TEXT, CHECK_TINY,
						CHECK_RANDOM};

	return kinds[number % 5];
}

static void fill(char *page, uint32_t number)
{
	if (vocabulary)
		check_fill_words(page, vocabulary, number);
	else
		check_fill(page, kind_of(number), number);
}

static void store(uint32_t number)
{
	char page[USW_PAGE_BYTES];
	char object[USW_PAGE_BYTES];
	enum usw_codec codec;
	uint64_t place;

	fill(page, number);
	CHECK_EQ(usw_vswap_alloc(&vswap, USW_BACKEND_MEMORY, 0, usw_codec_hash(page, CHECK_SEED),
				 &ids[number]),
		 0);
	uint32_t length = usw_codec_compress(&(struct usw_codec_hint){0}, page, object, &codec);
	CHECK_EQ(usw_segments_append(&segments, USW_LOG_LOOSE, ids[number], object, length, codec,
				     &place),
		 0);
	CHECK(usw_vswap_repoint(&vswap, ids[number], USW_BACKEND_MEMORY, 0, USW_BACKEND_OBJECT,
				place));
}

/** Pages until so many segments are closed. */
static void begin(uint32_t closed, uint32_t capacity)
{
	memset(&segments, 0, sizeof(segments));
	memset(&vswap, 0, sizeof(vswap));
	CHECK_EQ(usw_segments_create(&segments, capacity), 0);
	CHECK_EQ(usw_vswap_create(&vswap, &segments, 2 * IDS), 0);
	usw_packer_init(&packer, &vswap, CHECK_SEED, on_done, NULL);
	for (count = 0; segments.used_segments <= closed; count++) {
		CHECK_THAT(count, <, IDS);
		segments.clock = count;
		store(count);
	}
}

static void drop(uint32_t number)
{
	if (ids[number])
		usw_vswap_put(&vswap, ids[number]);
	ids[number] = USW_VSWAP_NONE;
}

static void check_page(uint32_t number)
{
	char wanted[USW_PAGE_BYTES];
	char page[USW_PAGE_BYTES];

	if (!ids[number])
		return;
	fill(wanted, number);
	CHECK_EQ(check_read(&vswap, NULL, ids[number], page), CHECK_READ_RIGHT);
	CHECK(memcmp(page, wanted, USW_PAGE_BYTES) == 0);
}

static void end(void)
{
	for (uint32_t i = 0; i < count; i++)
		check_page(i);
	usw_packer_deinit(&packer);
	usw_segments_check(&segments);
	for (uint32_t i = 0; i < count; i++)
		drop(i);
	CHECK_EQ(segments.live_count, 0);
	usw_segments_close_open(&segments);
	usw_segments_reap(&segments);
	usw_segments_check(&segments);
	CHECK_EQ(segments.used_segments, 0);
	usw_vswap_destroy(&vswap);
	usw_segments_destroy(&segments);
}

static enum usw_codec codec_of(uint32_t number)
{
	uint64_t place = usw_word_place(usw_vswap_word(&vswap, ids[number]));
	struct usw_object object;

	CHECK(usw_segments_find(&segments, usw_place_group(place), usw_place_index(place),
				&object));
	return object.codec;
}

/** What the thread does with one segment, on this one. */
static void pack(uint32_t segment)
{
	usw_segments_header(&segments, segment)->is_moving = true;
	packer.segment = segment;
	packer.moved = 0;
	usw_pack_segment(&packer);
}

static void pack_coldest(void)
{
	uint32_t loose, all;
	uint32_t segment = usw_segments_coldest_loose(&segments, &loose, &all);

	CHECK(segment);
	pack(segment);
}

static void move_all(void)
{
	while (usw_pack_move_some(&packer))
		usw_segments_check(&segments);
	usw_segments_check(&segments);
}

static void test_packed_pages_come_back_shorter(void)
{
	begin(2, 8);
	CHECK_EQ(usw_pack_prepare(&packer), 0);
	uint64_t live_before = segments.live_bytes;
	pack(1);
	CHECK_EQ(segments.live_bytes, live_before); // nothing has moved yet
	move_all();
	CHECK_THAT(packer.packed_pages, >, packer.count / 2);
	CHECK_THAT(segments.live_bytes, <, live_before);
	CHECK_EQ(codec_of(0), USW_CODEC_DENSE);
	CHECK_EQ(codec_of(4), USW_CODEC_STORED);
	CHECK_THAT(codec_of(count - 2), !=, USW_CODEC_DENSE);

	// What is dense stays apart, is not packed again, and is compacted into its like.
	uint64_t place = usw_word_place(usw_vswap_word(&vswap, ids[0]));
	CHECK_EQ(usw_place_group(place), segments.open[USW_LOG_DENSE]);
	usw_segments_close_open(&segments);
	CHECK(!usw_segments_has_vacancy(&segments, usw_place_group(place)));
	uint32_t packed = packer.count;
	for (uint32_t i = 1; i < packed; i++)
		drop(i);
	segments.worth_share = USW_WORTH_SHARE;
	CHECK_EQ(usw_compact_one(&vswap), 1);
	CHECK_EQ(codec_of(0), USW_CODEC_DENSE);
	CHECK(usw_segments_header(&segments, segments.open[USW_LOG_DENSE])->is_dense);
	end();
}

static void test_what_is_released_meanwhile_is_gone(void)
{
	begin(1, 8);
	CHECK_EQ(usw_pack_prepare(&packer), 0);
	pack(1);
	for (uint32_t i = 0; i < packer.count; i += 3)
		drop(i);
	CHECK(usw_pack_move_some(&packer));
	for (uint32_t i = 1; i < packer.count; i += 3)
		drop(i); // some of them moved already
	usw_vswap_collect(&vswap);
	for (uint32_t i = 0; i < packer.count; i += 3)
		store(i); // IDs that were theirs are others' now
	move_all();
	end();

	// All of it: the segment is free when the packer is through with it, and not before.
	begin(1, 8);
	CHECK_EQ(usw_pack_prepare(&packer), 0);
	pack(1);
	for (uint32_t i = 0; i < count; i++)
		drop(i);
	usw_segments_reap(&segments);
	CHECK_EQ(usw_segments_header(&segments, 1)->state, USW_SEGMENT_CLOSED);
	move_all();
	CHECK_EQ(usw_segments_header(&segments, 1)->state, USW_SEGMENT_FREE);
	CHECK_EQ(packer.packed_pages, 0);
	end();
}

static void test_damage_is_not_hidden(void)
{
	struct usw_object object;
	char page[USW_PAGE_BYTES];

	begin(1, 8);
	CHECK_EQ(usw_pack_prepare(&packer), 0);
	CHECK(usw_segments_find(&segments, 1, 0, &object));
	((char *)(uintptr_t)object.bytes)[object.length_bytes / 2] ^= 4;
	pack(1);
	move_all();
	CHECK_THAT(codec_of(0), !=, USW_CODEC_DENSE);
	CHECK_EQ(check_read(&vswap, NULL, ids[0], page), CHECK_READ_CORRUPT);
	drop(0);

	// Damage of what is packed is found in the same way.
	uint64_t place = usw_word_place(usw_vswap_word(&vswap, ids[1]));
	CHECK(usw_segments_find(&segments, usw_place_group(place), usw_place_index(place),
				&object));
	CHECK_EQ(object.codec, USW_CODEC_DENSE);
	((char *)(uintptr_t)object.bytes)[object.length_bytes / 2] ^= 4;
	CHECK_EQ(check_read(&vswap, NULL, ids[1], page), CHECK_READ_CORRUPT);
	drop(1);
	end();
}

static void test_no_segment_to_move_to(void)
{
	begin(2, 4); // the third is open, and there is no fourth
	CHECK_EQ(usw_pack_prepare(&packer), 0);
	pack(1);
	CHECK(!usw_pack_move_some(&packer));
	CHECK_EQ(packer.packed_pages, 1); // it was to be
	CHECK(!usw_segments_header(&segments, 1)->is_moving);
	CHECK_EQ(packer.segment, 0);
	end();
}

static void test_the_young_stay_as_they_are(void)
{
	uint32_t loose, all;

	begin(40, 128);
	for (uint32_t i = 0; i < 100; i++)
		CHECK(!usw_pack_step(&packer, USW_PACK_NOT));
	CHECK(!packer.is_started);
	CHECK_EQ(usw_pack_density(&packer), USW_DENSE_NOT);
	usw_pack_step(&packer, USW_PACK_COLD);
	CHECK_EQ(usw_pack_density(&packer), packer.dictionary);
	usw_pack_step(&packer, USW_PACK_ALL);
	CHECK_EQ(usw_pack_density(&packer), USW_DENSE_NOT);
	do {
		if (!usw_pack_step(&packer, USW_PACK_COLD))
			usleep(100);
		packer.after_ns = 0;
		usw_segments_coldest_loose(&segments, &loose, &all);
	} while (packer.segment || loose > all / 16);
	CHECK(loose && loose == all / 16);
	for (uint32_t i = 0; i < 100; i++)
		CHECK(!usw_pack_step(&packer, USW_PACK_COLD) && !packer.segment);
	usw_segments_check(&segments);
	CHECK_EQ(codec_of(0), USW_CODEC_DENSE);
	CHECK_THAT(codec_of(count - 2), !=, USW_CODEC_DENSE);
	end();
}

/** The owner packs one object at a time, of a segment that is nobody else's. */
static void test_the_owner_packs_itself(void)
{
	uint32_t loose, all, calls = 0;

	begin(40, 128);
	CHECK(!usw_pack_one(&packer)); // nothing was asked for
	usw_pack_step(&packer, USW_PACK_COLD);
	uint32_t threads = packer.segment;
	CHECK(threads);
	uint64_t live_before = segments.live_bytes;
	CHECK(usw_pack_one(&packer));
	CHECK(packer.own.segment && packer.own.segment != threads);
	CHECK_THAT(segments.live_bytes, <, live_before);
	usw_segments_check(&segments);
	// What is released or released and made anew in the middle of a segment is left alone.
	for (uint32_t i = 0; i < count; i += 3)
		drop(i);
	usw_vswap_collect(&vswap);
	for (uint32_t i = 0; i < count; i += 3)
		store(i);
	do {
		usw_pack_step(&packer, USW_PACK_COLD);
		if (calls++ % 256 == 0)
			usw_segments_check(&segments);
		packer.own.after_ns = packer.after_ns = 0;
		usw_segments_coldest_loose(&segments, &loose, &all);
	} while (usw_pack_one(&packer) || packer.segment || loose > all / 16);
	CHECK(!packer.own.segment);
	usw_pack_step(&packer, USW_PACK_NOT);
	CHECK(!usw_pack_one(&packer));
	CHECK_EQ(codec_of(1), USW_CODEC_DENSE);
	CHECK_EQ(codec_of(4), USW_CODEC_STORED);
	end();

	// In the middle of a segment, and where there is no segment to move to.
	begin(40, 128);
	usw_pack_step(&packer, USW_PACK_COLD);
	for (uint32_t i = 0; i < 100; i++)
		CHECK(usw_pack_one(&packer));
	end();
	begin(40, 128);
	usw_pack_step(&packer, USW_PACK_COLD);
	CHECK(usw_pack_one(&packer));
	uint32_t taken = packer.own.segment;
	usw_pack_step(&packer, USW_PACK_COLD);
	CHECK_EQ(packer.own.segment, taken);
	usw_pack_step(&packer, USW_PACK_NOT);
	CHECK(!packer.own.segment && !usw_segments_header(&segments, taken)->is_moving);
	end();
	// Where nothing else makes room: all of it, whether the thread runs or not.
	begin(40, 128);
	usw_pack_step(&packer, USW_PACK_ALL);
	while (usw_pack_one(&packer)) {
		taken = packer.own.segment;
		if (calls++ % 16 == 0)
			usw_pack_step(&packer, USW_PACK_ALL);
		CHECK_EQ(packer.own.segment, taken);
	}
	CHECK_EQ(usw_segments_coldest_loose(&segments, &loose, &all), 0);
	end();
	begin(2, 4);
	packer.need = USW_PACK_ALL;
	CHECK(usw_pack_one(&packer));
	CHECK(usw_pack_one(&packer) && !packer.own.segment);
	CHECK(packer.is_impossible && !usw_pack_one(&packer));
	end();
}

/** A dictionary before the first segment, and others while the last one does not serve. */
static void test_dictionaries_follow_what_comes(void)
{
	vocabulary = 1;
	begin(30, 128);
	CHECK_EQ(usw_pack_prepare(&packer), 0);
	packer.may_renew = true;
	pack_coldest();
	CHECK_EQ(packer.dictionary, 1);
	uint64_t bytes = 0;
	for (uint32_t i = 0; i < packer.count; i++)
		bytes += packer.objects[i].length_bytes;
	CHECK_THAT(bytes, <, packer.count * (USW_PAGE_BYTES / 2));
	move_all();
	for (uint32_t i = 0; i < 8; i++) {
		pack_coldest();
		move_all();
	}
	CHECK_EQ(packer.dictionary, 1); // it serves
	for (uint32_t i = 0; i < count; i++)
		drop(i);
	usw_vswap_collect(&vswap);
	vocabulary = 2;
	for (uint32_t i = 0; i < count; i++)
		store(i);
	for (uint32_t i = 0; i < 8; i++) {
		pack_coldest();
		move_all();
	}
	CHECK_EQ(packer.dictionary, 2);
	end();
	vocabulary = 0;
}

static void test_it_ends_at_any_time(void)
{
	for (uint32_t i = 0; i < 40; i++) {
		begin(2, 8);
		usw_pack_step(&packer, USW_PACK_COLD);
		usleep(i * 50);
		if (i % 2)
			usw_pack_step(&packer, USW_PACK_COLD);
		end();
	}
}

static void test_anything_can_be_read(void)
{
	char *area = mmap(NULL, 2 * USW_PAGE_BYTES, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char page[USW_PAGE_BYTES], back[USW_PAGE_BYTES];
	uint64_t random = 7;

	CHECK(area != MAP_FAILED &&
	      mprotect(area + USW_PAGE_BYTES, USW_PAGE_BYTES, PROT_NONE) == 0);
	CHECK_EQ(usw_dense_prepare(), 0);
	struct usw_dense_encoder *encoder = usw_dense_encoder_create();
	CHECK(encoder);
	for (uint32_t round = 0; round < 20000; round++) {
		enum usw_filter filter = (enum usw_filter)(round % USW_FILTER_COUNT);
		char object[USW_PAGE_BYTES];

		check_fill(page, kind_of(round), round);
		uint32_t length = usw_dense_compress(encoder, filter, page, object, 3800);
		CHECK(length || kind_of(round) == CHECK_RANDOM);
		if (!length)
			length = 1 + (uint32_t)check_random(&random) % USW_PAGE_BYTES;
		char *at = area + USW_PAGE_BYTES - length; // not a byte behind it is read
		memcpy(at, object, length);
		if (kind_of(round) != CHECK_RANDOM) {
			CHECK_EQ(usw_dense_decompress(at, length, back), 0);
			CHECK(memcmp(back, page, USW_PAGE_BYTES) == 0);
		}
		for (uint32_t i = 0; i < 1 + round % 4; i++)
			at[check_random(&random) % length] ^=
				(char)(1u << check_random(&random) % 8);
		(void)usw_dense_decompress(at, length, back);
	}
	CHECK_EQ(usw_dense_decompress(area, 0, back), -EBADMSG);
	CHECK_EQ(usw_dense_decompress(area, 1, back), -EBADMSG);
	CHECK_EQ(usw_dense_decompress(area, UINT32_MAX, back), -EBADMSG);
	CHECK_EQ(usw_dense_compress(encoder, USW_FILTER_NONE, page, back, 1), 0);
	usw_dense_encoder_destroy(encoder);
	munmap(area, 2 * USW_PAGE_BYTES);
}

int main(void)
{
	check_start(200);
	if (usw_dense_prepare() == -ENOSYS) {
		puts("skipped: built without zstd");
		return 77;
	}
	test_dictionaries_follow_what_comes(); // first, while there are numbers
	test_packed_pages_come_back_shorter();
	test_what_is_released_meanwhile_is_gone();
	test_damage_is_not_hidden();
	test_no_segment_to_move_to();
	test_the_young_stay_as_they_are();
	test_the_owner_packs_itself();
	test_it_ends_at_any_time();
	test_anything_can_be_read();
	return 0;
}
