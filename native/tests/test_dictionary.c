// SPDX-License-Identifier: MIT

/**
 * @file
 * Goal: a dictionary makes pages of its kind shorter, others no longer, and whoever asks for one that
 * does not exist gets no page; numbers are never given twice.
 * Method: pages of two vocabularies, compressed with and without, and read again; objects whose first
 * byte names others; makers side by side until there are no numbers left.
 */

#include <errno.h>
#include <pthread.h>

#include "check.h"
#include "dense.h"
#include "dictionary.h"

#define PAGES 256u

static char samples[USW_DICTIONARY_PAGES][USW_PAGE_BYTES];

static uint32_t make(uint64_t vocabulary, uint32_t pages)
{
	for (uint32_t i = 0; i < pages; i++)
		check_fill_words(samples[i], vocabulary, 1000 + i);
	return usw_dictionary_make(samples, pages);
}

/** Pages of a vocabulary, compressed and read again. Returns the bytes that they take. */
static uint64_t go(struct usw_dense_encoder *encoder, uint64_t vocabulary, enum usw_filter filter)
{
	uint64_t bytes = 0;

	for (uint32_t i = 0; i < PAGES; i++) {
		char page[USW_PAGE_BYTES], object[USW_PAGE_BYTES], back[USW_PAGE_BYTES];

		check_fill_words(page, vocabulary, i);
		uint32_t length = usw_dense_compress(encoder, filter, page, object, sizeof(object));
		CHECK(length);
		CHECK_EQ(usw_dense_decompress(object, length, back), 0);
		CHECK(memcmp(back, page, USW_PAGE_BYTES) == 0);
		bytes += length;
	}
	return bytes;
}

static void test_its_kind_becomes_shorter(uint32_t number)
{
	struct usw_dense_encoder *plain = usw_dense_encoder_create();
	struct usw_dense_encoder *served = usw_dense_encoder_create();

	CHECK(plain && served && !usw_dense_encoder_is_served(served));
	usw_dense_encoder_use(served, 0); // none yet
	usw_dense_encoder_use(served, number);
	uint64_t alone;
	for (enum usw_filter filter = 0; filter < USW_FILTER_COUNT; filter++) {
		alone = go(plain, 1, filter);
		CHECK_THAT(go(served, 1, filter), <=, alone + alone / 50);
	}
	alone = go(plain, 1, USW_FILTER_NONE);
	go(served, 1, USW_FILTER_NONE);
	CHECK_THAT(go(served, 1, USW_FILTER_NONE), <, alone * 8 / 10);
	CHECK(usw_dense_encoder_is_served(served));

	// Another kind: both ways are tried now and then, and the shorter is taken.
	alone = go(plain, 2, USW_FILTER_NONE);
	go(served, 2, USW_FILTER_NONE);
	CHECK_THAT(go(served, 2, USW_FILTER_NONE), <=, alone + alone / 50);
	CHECK(!usw_dense_encoder_is_served(served));
	usw_dense_encoder_destroy(plain);
	usw_dense_encoder_destroy(served);
}

static void test_so_many_pages_it_is_not_made_of(void)
{
	CHECK_EQ(make(1, 0), 0);
	CHECK_EQ(make(1, 63), 0);
	CHECK_EQ(usw_dictionary_make(samples, USW_DICTIONARY_PAGES + 1), 0);
}

/** A page that did not fit is no reason to go on with the last one. */
static void test_it_changes_at_once(uint32_t first, uint32_t second)
{
	struct usw_dense_encoder *encoder = usw_dense_encoder_create();
	char page[USW_PAGE_BYTES], object[USW_PAGE_BYTES];

	usw_dense_encoder_use(encoder, first);
	check_fill(page, CHECK_RANDOM, 1);
	CHECK_EQ(usw_dense_compress(encoder, USW_FILTER_NONE, page, object, 1000), 0);
	usw_dense_encoder_use(encoder, second);
	check_fill_words(page, 2, 1);
	CHECK(usw_dense_compress(encoder, USW_FILTER_NONE, page, object, 3000));
	CHECK_EQ((uint8_t)object[0] >> 3, second);
	usw_dense_encoder_use(encoder, 0);
	CHECK(usw_dense_compress(encoder, USW_FILTER_NONE, page, object, 4000));
	CHECK_EQ((uint8_t)object[0] >> 3, 0);
	usw_dense_encoder_destroy(encoder);
}

static void test_one_that_does_not_exist(uint32_t number)
{
	struct usw_dense_encoder *encoder = usw_dense_encoder_create();
	char page[USW_PAGE_BYTES], object[USW_PAGE_BYTES], back[USW_PAGE_BYTES];
	uint64_t random = 5;

	usw_dense_encoder_use(encoder, number);
	check_fill_words(page, 2, 3);
	uint32_t length = usw_dense_compress(encoder, USW_FILTER_NONE, page, object, 4000);
	CHECK_EQ((uint8_t)object[0] >> 3, number);
	for (uint32_t other = number + 1; other <= USW_DICTIONARIES_MAX; other++) {
		object[0] = (char)(other << 3);
		CHECK_EQ(usw_dense_decompress(object, length, back), -EBADMSG);
	}
	CHECK(!usw_dictionary_decompressor(USW_DICTIONARIES_MAX + 1));
	// Damage: anything may come of it but a crash.
	for (uint32_t round = 0; round < 20000; round++) {
		length = usw_dense_compress(encoder, USW_FILTER_NONE, page, object, 4000);
		for (uint32_t i = 0; i < 1 + round % 4; i++)
			object[check_random(&random) % length] ^=
				(char)(1u << check_random(&random) % 8);
		(void)usw_dense_decompress(object, length, back);
	}
	usw_dense_encoder_destroy(encoder);
}

static _Atomic uint32_t given[USW_DICTIONARIES_MAX + 1];

static void *maker_main(void *argument)
{
	char(*pages)[USW_PAGE_BYTES] = argument;
	uint32_t number;

	while ((number = usw_dictionary_make(pages, 64)))
		CHECK_EQ(atomic_fetch_add(&given[number], 1), 0);
	return NULL;
}

static void test_numbers_end(uint32_t taken)
{
	pthread_t threads[2];

	for (uint32_t i = 0; i < USW_DICTIONARY_PAGES; i++)
		check_fill_words(samples[i], 1, i);
	for (uint32_t i = 0; i < 2; i++)
		CHECK_EQ(pthread_create(&threads[i], NULL, maker_main, samples[i * 64]), 0);
	for (uint32_t i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	for (uint32_t number = taken + 1; number <= USW_DICTIONARIES_MAX; number++)
		CHECK_EQ(given[number], 1);
	CHECK_EQ(make(1, USW_DICTIONARY_PAGES), 0);
	test_its_kind_becomes_shorter(1); // what there is stays
}

int main(void)
{
	check_start(100);
	if (usw_dense_prepare() == -ENOSYS) {
		puts("skipped: built without zstd");
		return 77;
	}
	test_so_many_pages_it_is_not_made_of();
	CHECK_EQ(make(1, USW_DICTIONARY_PAGES), 1);
	test_its_kind_becomes_shorter(1);
	CHECK_EQ(make(2, USW_DICTIONARY_PAGES), 2);
	test_it_changes_at_once(1, 2);
	test_one_that_does_not_exist(2);
	test_numbers_end(2);
	return 0;
}
