// SPDX-License-Identifier: MIT

/**
 * @file
 * Goal: every filter is undone to the byte, and its vector form is its portable form.
 * Method: random and structured pages both ways through both forms, at both ends of a page that
 * memory surrounds on neither side, and a page of numbered bytes against the definition.
 */

#include <sys/mman.h>

#include "check.h"
#include "filter.h"

static unsigned char *guarded_page(void)
{
	unsigned char *area =
		mmap(NULL, 3 * USW_PAGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(area != MAP_FAILED);
	CHECK(mprotect(area + USW_PAGE_BYTES, USW_PAGE_BYTES, PROT_READ | PROT_WRITE) == 0);
	return area + USW_PAGE_BYTES;
}

static void test_forms_agree_and_undo(void)
{
	unsigned char *page = guarded_page();
	unsigned char *fast = guarded_page();
	unsigned char *plain = guarded_page();
	unsigned char *back = guarded_page();

	for (uint64_t seed = 0; seed < 300; seed++) {
		for (enum usw_filter filter = 0; filter < USW_FILTER_COUNT; filter++) {
			check_fill(page, (enum check_kind)(seed % CHECK_KINDS), seed);
			memset(fast, 0x11, USW_PAGE_BYTES);
			memset(plain, 0x22, USW_PAGE_BYTES);
			usw_filter_apply(filter, page, fast);
			usw_filter_apply_portable(filter, page, plain);
			CHECK(memcmp(fast, plain, USW_PAGE_BYTES) == 0);
			memset(back, 0x33, USW_PAGE_BYTES);
			usw_filter_undo(filter, fast, back);
			CHECK(memcmp(page, back, USW_PAGE_BYTES) == 0);
			memset(back, 0x44, USW_PAGE_BYTES);
			usw_filter_undo_portable(filter, fast, back);
			CHECK(memcmp(page, back, USW_PAGE_BYTES) == 0);
		}
	}
}

/** Places in the page, followed byte by byte. */
static void test_bytes_go_where_the_header_says(void)
{
	_Alignas(16) unsigned char page[USW_PAGE_BYTES];
	_Alignas(16) unsigned char out[USW_PAGE_BYTES];

	check_fill(page, CHECK_RANDOM, 7);
	for (size_t word = 0; word < USW_PAGE_BYTES / 8; word++) {
		for (size_t byte = 0; byte < 8; byte++) {
			unsigned char value = page[word * 8 + byte];
			unsigned char before = word ? page[word * 8 - 8 + byte] : 0;

			usw_filter_apply(USW_FILTER_SHUFFLE8, page, out);
			CHECK_EQ(out[byte * 512 + word], value);
			usw_filter_apply(USW_FILTER_SHUFFLE4, page, out);
			CHECK_EQ(out[byte % 4 * 1024 + word * 2 + byte / 4], value);
			usw_filter_apply(USW_FILTER_LANES16, page, out);
			CHECK_EQ(out[byte < 2 ? byte * 512 + word
					      : byte / 2 * 1024 + word * 2 + byte % 2],
				 value);
			usw_filter_apply(USW_FILTER_XOR_SHUFFLE8, page, out);
			CHECK_EQ(out[byte * 512 + word], value ^ before);
		}
	}
}

int main(void)
{
	check_start(100);
	test_forms_agree_and_undo();
	test_bytes_go_where_the_header_says();
	return 0;
}
