// SPDX-License-Identifier: MIT

/**
 * @file
 * Goal: a page comes back from either codec, is made denser only when that is asked for and settled
 * how, and each target has its own hint.
 * Method: streams of known pages, compressed and read again; with zstd in the build and without.
 */

#include "check.h"
#include "compressor.h"

static struct usw_compressor compressor;

static void begin(void)
{
	memset(&compressor, 0, sizeof(compressor));
}

/** A page through the codec that is asked for, and back. */
static enum usw_codec go(const char *page, uint32_t dense, uint32_t *ret_length)
{
	char object[USW_PAGE_BYTES], back[USW_PAGE_BYTES];
	enum usw_codec codec;

	*ret_length = usw_compressor_compress(&compressor, 5, page, object, dense, &codec);
	CHECK_EQ(usw_codec_decompress(codec, object, *ret_length, back), 0);
	CHECK(memcmp(back, page, USW_PAGE_BYTES) == 0);
	return codec;
}

static void test_denser_when_asked(void)
{
	bool has_zstd = usw_dense_prepare() == 0;
	uint64_t quick_bytes = 0, dense_bytes = 0;
	uint32_t length, quick = 0, dense = 0;
	char page[USW_PAGE_BYTES];

	begin();
	for (uint32_t i = 0; i < 200; i++) {
		check_fill_words(page, 1, i);
		CHECK_THAT(go(page, USW_DENSE_NOT, &length), !=, USW_CODEC_DENSE);
		quick_bytes += length;
	}
	CHECK(!compressor.encoder);
	begin();
	for (uint32_t i = 0; i < 200; i++) {
		check_fill_words(page, 1, i);
		bool is_dense = go(page, 0, &length) == USW_CODEC_DENSE;

		CHECK(i || !is_dense); // nothing is known of the first
		dense += is_dense;
		quick += !is_dense;
		dense_bytes += length;
	}
	// The filter is tried again now and then, with the quick one.
	CHECK(has_zstd ? dense > 150 && quick > 5 : dense == 0);
	CHECK(!has_zstd || dense_bytes < quick_bytes * 9 / 10);
	usw_compressor_deinit(&compressor);
}

static void test_what_does_not_compress_is_stored(void)
{
	uint32_t length, dense = 0;
	char page[USW_PAGE_BYTES];

	begin();
	for (uint32_t i = 0; i < 200; i++) {
		bool is_noise = i % 5 == 4;

		if (is_noise)
			check_fill(page, CHECK_RANDOM, i);
		else
			check_fill_words(page, 1, i);
		enum usw_codec codec = go(page, 0, &length);
		dense += codec == USW_CODEC_DENSE;
		CHECK((codec == USW_CODEC_STORED) == is_noise);
	}
	CHECK(dense || usw_dense_prepare());
	usw_compressor_deinit(&compressor);
	begin();
	for (uint32_t i = 0; i < 200; i++) {
		check_fill(page, CHECK_RANDOM, i);
		CHECK_EQ(go(page, 0, &length), USW_CODEC_STORED);
	}
	CHECK(!compressor.encoder); // it was not even tried
}

/** What the quick codec does nearly as well with is left to it. */
static void test_where_denser_gains_little(void)
{
	uint32_t length, dense = 0;
	uint64_t random = 3;
	char page[USW_PAGE_BYTES];

	begin();
	for (uint32_t i = 0; i < 400; i++) {
		for (uint32_t at = 0; at < USW_PAGE_BYTES; at += 8) {
			uint64_t word = check_random(&random) >> 32;

			memcpy(page + at, &word, sizeof(word));
		}
		dense += go(page, 0, &length) == USW_CODEC_DENSE;
	}
	CHECK_THAT(dense, <, 400 / 4);
	usw_compressor_deinit(&compressor);
}

static void test_hints_are_those_of_the_target(void)
{
	begin();
	usw_compressor_hint(&compressor, 5)->filter = USW_FILTER_LANES16;
	CHECK_EQ(usw_compressor_hint(&compressor, 6)->filter, 0);
	CHECK_EQ(usw_compressor_hint(&compressor, 5)->filter, USW_FILTER_LANES16);
	CHECK_EQ(usw_compressor_hint(&compressor, 5 + USW_COMPRESSOR_HINTS)->filter, 0);
	CHECK_EQ(usw_compressor_hint(&compressor, 5)->filter, 0);
}

int main(void)
{
	check_start(60);
	test_denser_when_asked();
	test_what_does_not_compress_is_stored();
	test_where_denser_gains_little();
	test_hints_are_those_of_the_target();
	return 0;
}
