// SPDX-License-Identifier: MIT

/**
 * @file
 * Goal: a page comes back as it went, and no object, however wrong, makes decompression leave its
 * bounds.
 * Method: known pages both ways; garbage, truncations and bit flips placed against guard pages;
 * objects that change while they are read.
 */

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <xxhash.h>

#include "check.h"

#if defined(__SANITIZE_THREAD__)
#define ROUNDS 5000u
#else
#define ROUNDS 40000u
#endif

/** One for all, so that each page meets what another kind of page left behind. */
static struct usw_codec_hint hint;

/** A page-sized buffer that ends where memory ends, and begins where it begins. */
static char *guarded_page(void)
{
	char *area = mmap(NULL, 3 * USW_PAGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(area != MAP_FAILED);
	CHECK(mprotect(area + USW_PAGE_BYTES, USW_PAGE_BYTES, PROT_READ | PROT_WRITE) == 0);
	return area + USW_PAGE_BYTES;
}

static void test_repeated_words_are_found(void)
{
	uint64_t page[CHECK_PAGE_WORDS];
	uint64_t word = 77;

	usw_codec_repeat(page, 0);
	CHECK(usw_codec_is_repeated(page, &word));
	CHECK_EQ(word, 0);
	usw_codec_repeat(page, 0x0123456789abcdef);
	CHECK(usw_codec_is_repeated(page, &word));
	CHECK_EQ(word, 0x0123456789abcdef);

	word = 77;
	for (size_t i = 0; i < CHECK_PAGE_WORDS; i++) {
		for (unsigned int bit = 0; bit < 64; bit += 21) {
			page[i] ^= (uint64_t)1 << bit;
			CHECK(!usw_codec_is_repeated(page, &word));
			page[i] ^= (uint64_t)1 << bit;
		}
	}
	CHECK_EQ(word, 77); // untouched unless true
}

static void test_hash_sees_every_byte(void)
{
	unsigned char page[USW_PAGE_BYTES];

	check_fill(page, CHECK_TEXT, 1);
	uint64_t hash = usw_codec_hash(page, CHECK_SEED);
	CHECK(hash == usw_codec_hash(page, CHECK_SEED));
	CHECK(hash != usw_codec_hash(page, CHECK_SEED + 1));
	CHECK_EQ(hash, XXH3_64bits_withSeed(page, USW_PAGE_BYTES, CHECK_SEED));
	for (size_t i = 0; i < sizeof(page); i++) {
		page[i] ^= 0x10;
		CHECK(usw_codec_hash(page, CHECK_SEED) != hash);
		page[i] ^= 0x10;
	}
}

static void test_pages_come_back(void)
{
	char *page = guarded_page();
	char *back = guarded_page();
	char *object = guarded_page();

	for (uint64_t seed = 0; seed < 200; seed++) {
		for (enum check_kind kind = 0; kind < CHECK_KINDS; kind++) {
			enum usw_codec codec = 99;

			check_fill(page, kind, seed);
			uint32_t length = usw_codec_compress(&hint, page, object, &codec);
			CHECK_THAT(length, >, 0);
			if (kind == CHECK_RANDOM) {
				CHECK_EQ(codec, USW_CODEC_STORED);
				CHECK_EQ(length, USW_PAGE_BYTES);
			} else {
				CHECK_THAT(codec, >=, USW_CODEC_LZ4);
				CHECK_THAT(codec, <, USW_CODEC_LZ4 + USW_FILTER_COUNT);
				CHECK_THAT(length, <=, USW_CODEC_WORTH_BYTES);
			}
			// Against the end of memory, so that one byte too many is seen.
			memmove(object + USW_PAGE_BYTES - length, object, length);
			memset(back, 0x5a, USW_PAGE_BYTES);
			CHECK_EQ(usw_codec_decompress(codec, object + USW_PAGE_BYTES - length,
						      length, back),
				 0);
			CHECK(memcmp(page, back, USW_PAGE_BYTES) == 0);
		}
	}
}

/** Pages around the point from which on they are stored as they are. */
static void test_worth_is_a_bound(void)
{
	unsigned char page[USW_PAGE_BYTES];
	unsigned char object[USW_PAGE_BYTES];
	unsigned char back[USW_PAGE_BYTES];
	unsigned int stored = 0;
	unsigned int compressed = 0;

	check_fill(page, CHECK_RANDOM, 3);
	for (size_t zeros = 0; zeros < 600; zeros++) {
		enum usw_codec codec;

		memset(page + 1000, 0, zeros);
		uint32_t length = usw_codec_compress(&hint, page, object, &codec);
		if (codec == USW_CODEC_STORED) {
			stored++;
			CHECK_EQ(length, USW_PAGE_BYTES);
		} else {
			compressed++;
			CHECK_THAT(length, <=, USW_CODEC_WORTH_BYTES);
		}
		CHECK_EQ(usw_codec_decompress(codec, object, length, back), 0);
		CHECK(memcmp(page, back, USW_PAGE_BYTES) == 0);
	}
	CHECK_THAT(stored, >, 0);
	CHECK_THAT(compressed, >, 0);
}

static void test_wrong_lengths_are_refused(void)
{
	char *page = guarded_page();
	char *end = guarded_page() + USW_PAGE_BYTES;

	for (unsigned int codec = 0; codec < 8; codec++)
		CHECK_EQ(usw_codec_decompress((enum usw_codec)codec, end, 0, page), -EBADMSG);
	// The lengths an entry can name, and some that it cannot: nothing is there to be read.
	CHECK_EQ(usw_codec_decompress(USW_CODEC_STORED, end - 1, 1, page), -EBADMSG);
	CHECK_EQ(usw_codec_decompress(USW_CODEC_STORED, end - 4095, 4095, page), -EBADMSG);
	CHECK_EQ(usw_codec_decompress(USW_CODEC_STORED, end, USW_PAGE_BYTES + 1, page), -EBADMSG);
	CHECK_EQ(usw_codec_decompress(USW_CODEC_LZ4, end, USW_PAGE_BYTES + 1, page), -EBADMSG);
	CHECK_EQ(usw_codec_decompress(USW_CODEC_LZ4, end, 0x80000000u, page), -EBADMSG);
	CHECK_EQ(usw_codec_decompress(USW_CODEC_LZ4, end, UINT32_MAX, page), -EBADMSG);
	CHECK_EQ(usw_codec_decompress((enum usw_codec)6, end - 100, 100, page), -EBADMSG);
	CHECK_EQ(usw_codec_decompress(USW_CODEC_DENSE, end - 100, 100, page), -EBADMSG);
}

static void test_garbage_stays_inside(void)
{
	char *page = guarded_page();
	char *end = guarded_page() + USW_PAGE_BYTES;
	uint64_t state = 42;
	unsigned int refused = 0;

	for (unsigned int round = 0; round < ROUNDS; round++) {
		uint32_t length =
			1 + (uint32_t)(check_random(&state) % (round % 4 ? 64 : USW_PAGE_BYTES));
		char *object = end - length;

		for (uint32_t i = 0; i < length; i++)
			object[i] = (char)(check_random(&state) >> (round % 3 * 3));
		enum usw_codec codec = (enum usw_codec)(USW_CODEC_LZ4 + round % USW_FILTER_COUNT);
		refused += usw_codec_decompress(codec, object, length, page) == -EBADMSG;
	}
	CHECK_THAT(refused, >, ROUNDS / 2);
}

/** Real objects with a few bits wrong or an end missing: nearer to the edge than plain garbage. */
static void test_damaged_objects_stay_inside(void)
{
	char *page = guarded_page();
	char *back = guarded_page();
	char *end = guarded_page() + USW_PAGE_BYTES;
	char object[USW_PAGE_BYTES];
	uint64_t state = 43;
	unsigned int never_wrong = 0;

	for (unsigned int round = 0; round < ROUNDS; round++) {
		enum usw_codec codec;
		uint32_t cut = round % 2 ? (uint32_t)(check_random(&state) % 16) : 0;

		check_fill(page, round % 5 ? CHECK_TINY : CHECK_TEXT, round);
		uint64_t hash = usw_codec_hash(page, CHECK_SEED);
		uint32_t length = usw_codec_compress(&hint, page, object, &codec);
		for (unsigned int flips = (unsigned int)(check_random(&state) % 4) + 1; flips;
		     flips--)
			object[check_random(&state) % length] ^=
				(char)(1 << check_random(&state) % 8);
		length = cut < length ? length - cut : 1;
		memcpy(end - length, object, length);
		if (usw_codec_decompress(codec, end - length, length, back) == 0 &&
		    usw_codec_hash(back, CHECK_SEED) == hash) {
			CHECK(memcmp(page, back, USW_PAGE_BYTES) == 0);
			never_wrong++;
		}
	}
	CHECK_THAT(never_wrong, <, ROUNDS);
}

/** Doubles of one magnitude, text, and again: the filter follows, and what it gains is kept. */
static void test_filter_follows_the_pages(void)
{
	double page[CHECK_PAGE_WORDS];
	char object[USW_PAGE_BYTES];
	char back[USW_PAGE_BYTES];
	struct usw_codec_hint own = {0};
	uint64_t state = 5;

	for (unsigned int round = 0; round < 300; round++) {
		bool numbers = round / 100 != 1;
		enum usw_codec codec;

		if (numbers)
			for (size_t i = 0; i < CHECK_PAGE_WORDS; i++)
				page[i] = 1000.0 + (double)(check_random(&state) % 100) / 64;
		else
			for (size_t i = 0; i < USW_PAGE_BYTES; i++)
				((char *)page)[i] = "uffdswap keeps a page; "[(i * i / 97) % 23];
		uint32_t length = usw_codec_compress(&own, page, object, &codec);
		CHECK_EQ(usw_codec_decompress(codec, object, length, back), 0);
		CHECK(memcmp(page, back, USW_PAGE_BYTES) == 0);
		CHECK_THAT(own.until_trial, <=, 32);
		// The longest interval between trials after the change everybody must have
		// followed.
		if (numbers && round % 100 > 32)
			CHECK_THAT(codec, >, USW_CODEC_LZ4);
	}
}

struct scribble {
	char *object;
	uint32_t length;
	_Atomic bool stop;
};

USW_OPTIMISTIC
static void scribble_once(char *object, uint32_t length, uint64_t *state)
{
	volatile char *at = object;

	for (uint32_t i = 0; i < 64; i++)
		at[check_random(state) % length] = (char)check_random(state);
}

static void *scribble_main(void *argument)
{
	struct scribble *scribble = argument;
	uint64_t state = 44;

	while (!atomic_load(&scribble->stop))
		scribble_once(scribble->object, scribble->length, &state);
	return NULL;
}

/** The optimistic reader decompresses objects that are overwritten meanwhile. */
static void test_changing_objects_stay_inside(void)
{
	char *page = guarded_page();
	char *object = guarded_page();
	enum usw_codec codec;
	pthread_t thread;

	check_fill(page, CHECK_TEXT, 9);
	uint32_t length = usw_codec_compress(&hint, page, object, &codec);
	memmove(object + USW_PAGE_BYTES - length, object, length);
	struct scribble scribble = {.object = object + USW_PAGE_BYTES - length, .length = length};
	CHECK(pthread_create(&thread, NULL, scribble_main, &scribble) == 0);
	for (unsigned int round = 0; round < ROUNDS; round++)
		(void)usw_codec_decompress(codec, scribble.object, length, page);
	atomic_store(&scribble.stop, true);
	pthread_join(thread, NULL);
}

int main(void)
{
	check_start(100);
	test_repeated_words_are_found();
	test_hash_sees_every_byte();
	test_pages_come_back();
	test_worth_is_a_bound();
	test_wrong_lengths_are_refused();
	test_garbage_stays_inside();
	test_damaged_objects_stay_inside();
	test_filter_follows_the_pages();
	test_changing_objects_stay_inside();
	return 0;
}
