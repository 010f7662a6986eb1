// SPDX-License-Identifier: MIT

/**
 * @file
 * What the workload's pages hold, and how a page that holds something else is found.
 *
 * The body of a page follows from its number alone, so it can be made again and compared. Two words
 * at places that depend on the number are tags, which follow from number and version: a page that
 * was mistaken for another, an old version, and a page of zeros are all found by reading the tags.
 * Pages of zeros, of which `mixed` has some, have tags of zero, or they would not be that.
 */

#ifndef USW_BENCH_CONTENT_H
#define USW_BENCH_CONTENT_H

#include <stdbool.h>
#include <stdint.h>

#define USW_PAGE_BYTES 4096
#define USW_PAGE_WORDS (USW_PAGE_BYTES / 8)

enum usw_content_kind {
	USW_CONTENT_TEXT,   /* words and lines */
	USW_CONTENT_MIXED,  /* 25 % zero, 50 % text, 25 % random */
	USW_CONTENT_RANDOM, /* cannot be compressed */
	USW_CONTENT_FILE,   /* pages of a file, each at many places */
};

struct usw_content {
	enum usw_content_kind kind;
	uint64_t seed;
	const uint64_t *file; /* USW_CONTENT_FILE: its pages, mapped */
	uint64_t file_pages;
	char words[512][16]; /* vocabulary of text, each word followed by a space */
	uint8_t word_bytes[512];
};

/** Begin with a kind by its name, or with the pages of a file; 0 or -errno. */
int usw_content_init(struct usw_content *content, const char *name, uint64_t seed);
int usw_content_init_file(struct usw_content *content, const char *path, uint64_t seed);
void usw_content_deinit(struct usw_content *content);

/** Write a page as it is in a version: its body and both tags. */
void usw_content_fill(const struct usw_content *content, uint64_t number, uint32_t version,
		      uint64_t *page);

/** Where the tags of a page are, as word indexes; one in each half. */
static inline unsigned int usw_content_first_tag(uint64_t number)
{
	return (unsigned int)(number * 37 % (USW_PAGE_WORDS / 2));
}

static inline unsigned int usw_content_second_tag(uint64_t number)
{
	return USW_PAGE_WORDS - 1 - usw_content_first_tag(number);
}

/** What both tags of a page are in a version; the second one is the complement of the first. */
uint64_t usw_content_tag(const struct usw_content *content, uint64_t number, uint32_t version);

/** What the second tag is if the first one is `tag`. */
static inline uint64_t usw_content_other_tag(uint64_t tag)
{
	return tag ? ~tag : 0;
}

#endif /* USW_BENCH_CONTENT_H */
