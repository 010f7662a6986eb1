// SPDX-License-Identifier: MIT

/**
 * @file
 * What the codec makes of files of raw pages, and what it costs. Run by measure_codec.py.
 *
 * A line for each file: pages, bytes stored (8-byte alignment and the 8-byte entry included) with
 * filters and with plain LZ4, compress cost of both, and for each codec the pages it took and the
 * median cost of decompressing, undoing the filter and hashing one.
 */

#include <lz4.h>
#include <stdio.h>
#include <string.h>

#include "codec.h"

#define OVERHEAD_BYTES 8u
#define CODECS (USW_CODEC_LZ4 + USW_FILTER_COUNT)

struct costs {
	uint32_t *ns[CODECS];
	size_t count[CODECS];
};

static int compare(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a;
	uint32_t y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

static uint64_t stored(uint32_t length)
{
	return ((length + 7) & ~7u) + OVERHEAD_BYTES;
}

static void time_decompress(struct costs *costs, enum usw_codec codec, const char *object,
			    uint32_t length, const char *page)
{
	char back[USW_PAGE_BYTES];
	uint64_t start = usw_now_ns();
	int ret = usw_codec_decompress(codec, object, length, back);
	uint64_t hash = usw_codec_hash(back, 1);
	uint64_t took = usw_now_ns() - start;

	if (ret || hash != usw_codec_hash(page, 1) || memcmp(back, page, USW_PAGE_BYTES) != 0)
		abort();
	costs->ns[codec][costs->count[codec]++] = (uint32_t)took;
}

static void measure(const char *path, char *pages, size_t page_count)
{
	struct usw_codec_hint hint = {0};
	struct costs costs = {0};
	uint64_t ours = 0, plain = 0, ours_ns = 0, plain_ns = 0, compressed = 0;

	for (int codec = 0; codec < CODECS; codec++)
		costs.ns[codec] = calloc(page_count, sizeof(uint32_t));
	for (size_t i = 0; i < page_count; i++) {
		const char *page = pages + i * USW_PAGE_BYTES;
		char object[USW_PAGE_BYTES];
		enum usw_codec codec;
		uint64_t word;

		if (usw_codec_is_repeated(page, &word))
			continue;
		// In turns, since whoever is first finds the page cold.
		int alone = 0;
		uint32_t length = 0;
		for (size_t turn = 0; turn < 2; turn++) {
			uint64_t start = usw_now_ns();

			if ((turn + i) % 2) {
				alone = LZ4_compress_default(page, object, USW_PAGE_BYTES,
							     USW_CODEC_WORTH_BYTES);
				plain_ns += usw_now_ns() - start;
			} else {
				length = usw_codec_compress(&hint, page, object, &codec);
				ours_ns += usw_now_ns() - start;
			}
		}
		// Again for its bytes: LZ4 alone may have come last. The hint is only looked at.
		struct usw_codec_hint same = {
			.filter = hint.filter, .until_trial = 1, .last_bytes = USW_PAGE_BYTES};
		length = usw_codec_compress(&same, page, object, &codec);
		plain += stored(alone ? (uint32_t)alone : USW_PAGE_BYTES);
		ours += stored(length);
		compressed++;
		time_decompress(&costs, codec, object, length, page);
	}
	printf("%s %zu %lu %lu %lu %lu", path, page_count, (unsigned long)ours,
	       (unsigned long)plain, (unsigned long)(ours_ns / (compressed + !compressed)),
	       (unsigned long)(plain_ns / (compressed + !compressed)));
	for (int codec = 0; codec < CODECS; codec++) {
		size_t count = costs.count[codec];

		qsort(costs.ns[codec], count, sizeof(uint32_t), compare);
		printf(" %zu:%u", count, count ? costs.ns[codec][count / 2] : 0);
		free(costs.ns[codec]);
	}
	printf("\n");
}

int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		FILE *file = fopen(argv[i], "rb");

		if (!file || fseek(file, 0, SEEK_END) != 0) {
			perror(argv[i]);
			return 1;
		}
		size_t page_count = (size_t)ftell(file) / USW_PAGE_BYTES;
		char *pages = aligned_alloc(USW_PAGE_BYTES, (page_count + 1) * USW_PAGE_BYTES);
		rewind(file);
		if (!pages || fread(pages, USW_PAGE_BYTES, page_count, file) != page_count) {
			perror(argv[i]);
			return 1;
		}
		fclose(file);
		measure(argv[i], pages, page_count);
		free(pages);
	}
	return 0;
}
