// SPDX-License-Identifier: MIT

/**
 * @file
 * Memory in which each page is one of few contents, none of which compresses.
 *
 *     equal_pages BYTES CONTENTS CHILDREN
 *
 * Fills and checks it, and forks CHILDREN children. They and the parent write every tenth page anew,
 * each with contents of its own, and check all of it twice: shared content must not change under
 * whoever did not write.
 */

#include "program.h"

static uint64_t contents;

static void fill_noise(uint64_t *page, uint64_t content)
{
	for (size_t word = 0; word < PAGE_WORDS; word++)
		page[word] = mix(content << 20 | word);
}

static uint64_t content_of(size_t page, uint64_t writer)
{
	return writer && page % 10 == 0 ? contents + writer * 1000 + page % 7
					: mix(page) % contents;
}

static void check_all(const uint64_t *memory, size_t pages, uint64_t writer)
{
	uint64_t wanted[PAGE_WORDS];

	for (size_t page = 0; page < pages; page++) {
		fill_noise(wanted, content_of(page, writer));
		CHECK(memcmp(memory + page * PAGE_WORDS, wanted, PAGE_BYTES) == 0,
		      "page %zu is not content %lu", page, content_of(page, writer));
	}
}

static void write_some(uint64_t *memory, size_t pages, uint64_t writer)
{
	for (size_t page = 0; page < pages; page += 10)
		fill_noise(memory + page * PAGE_WORDS, content_of(page, writer));
	check_all(memory, pages, writer);
	check_all(memory, pages, writer);
}

int main(int argc, char **argv)
{
	CHECK(argc == 4, "usage: equal_pages BYTES CONTENTS CHILDREN");
	size_t pages = parse_bytes(argv[1]) / PAGE_BYTES;
	uint64_t children = strtoull(argv[3], NULL, 10);
	uint64_t *memory = map_pages(pages);

	contents = strtoull(argv[2], NULL, 10);
	for (size_t page = 0; page < pages; page++)
		fill_noise(memory + page * PAGE_WORDS, content_of(page, 0));
	check_all(memory, pages, 0);
	for (uint64_t child = 1; child <= children; child++) {
		pid_t pid = fork();

		CHECK_CALL(pid);
		if (pid == 0) {
			write_some(memory, pages, 1 + child);
			_exit(0);
		}
	}
	if (children)
		write_some(memory, pages, 1);
	for (uint64_t child = 0; child < children; child++) {
		int status;

		CHECK_CALL(wait(&status));
		CHECK(status == 0, "a child ended with %#x", (unsigned int)status);
	}
	dprintf(STDOUT_FILENO, "ok\n");
	return 0;
}
