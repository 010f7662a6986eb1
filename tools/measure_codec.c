// SPDX-License-Identifier: MIT

/**
 * @file
 * What the codec makes of files of raw pages, and what it costs. Run by measure_codec.py.
 *
 * A line for each file: pages, bytes stored (8-byte alignment and 7 bytes of its table included)
 * with filters and with plain LZ4, compress cost of both (the median of five passes), and for each
 * codec the pages it took and the median cost of decompressing, undoing the filter and hashing one.
 */

#include <lz4.h>
#include <stdio.h>
#include <string.h>

#include "codec.h"

#define OVERHEAD_BYTES 7u
#define PASSES 5
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

/** One pass over the pages of a file, as one stream. */
struct pass {
	uint64_t ours_bytes, plain_bytes;
	uint64_t ours_ns, plain_ns;
	uint64_t compressed;
};

/** Compress one page both ways, in turns, since whoever is first finds the page cold. */
static void measure_page(struct pass *pass, struct usw_codec_hint *hint, struct costs *costs,
			 const char *page)
{
	char object[USW_PAGE_BYTES];
	char alone[USW_PAGE_BYTES];
	enum usw_codec codec = USW_CODEC_STORED;
	uint32_t length = 0;
	int alone_length = 0;

	for (uint64_t turn = 0; turn < 2; turn++) {
		uint64_t start = usw_now_ns();

		if ((turn + pass->compressed) % 2) {
			alone_length = LZ4_compress_default(page, alone, USW_PAGE_BYTES,
							    USW_CODEC_WORTH_BYTES);
			pass->plain_ns += usw_now_ns() - start;
		} else {
			length = usw_codec_compress(hint, page, object, &codec);
			pass->ours_ns += usw_now_ns() - start;
		}
	}
	pass->plain_bytes += stored(alone_length ? (uint32_t)alone_length : USW_PAGE_BYTES);
	pass->ours_bytes += stored(length);
	pass->compressed++;
	if (costs)
		time_decompress(costs, codec, object, length, page);
}

static struct pass measure_pass(const char *pages, size_t page_count, struct costs *costs)
{
	struct usw_codec_hint hint = {0};
	struct pass pass = {0};
	uint64_t word;

	for (size_t i = 0; i < page_count; i++)
		if (!usw_codec_is_repeated(pages + i * USW_PAGE_BYTES, &word))
			measure_page(&pass, &hint, costs, pages + i * USW_PAGE_BYTES);
	return pass;
}

static void measure(const char *path, const char *pages, size_t page_count)
{
	struct costs costs = {0};
	struct pass pass = {0};
	uint32_t ours_ns[PASSES], plain_ns[PASSES];

	for (int codec = 0; codec < CODECS; codec++)
		costs.ns[codec] = calloc(page_count, sizeof(uint32_t));
	for (int i = 0; i < PASSES; i++) {
		pass = measure_pass(pages, page_count, i == 0 ? &costs : NULL);
		ours_ns[i] = (uint32_t)(pass.ours_ns / (pass.compressed + !pass.compressed));
		plain_ns[i] = (uint32_t)(pass.plain_ns / (pass.compressed + !pass.compressed));
	}
	qsort(ours_ns, PASSES, sizeof(uint32_t), compare);
	qsort(plain_ns, PASSES, sizeof(uint32_t), compare);
	printf("%s %zu %lu %lu %u %u", path, page_count, (unsigned long)pass.ours_bytes,
	       (unsigned long)pass.plain_bytes, ours_ns[PASSES / 2], plain_ns[PASSES / 2]);
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
