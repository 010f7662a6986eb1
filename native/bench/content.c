// SPDX-License-Identifier: MIT

/**
 * @file
 * Page contents of the workload. Called by its threads; a struct usw_content does not change once
 * it is initialized.
 *
 * Text is drawn from 512 made-up words, frequent ones more often, so a compressor finds what it
 * finds in real text: repeated words at short distance, and no two lines alike.
 */

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "content.h"
#include "random.h"

#define WORDS 512
#define LINE_WORDS 12

/* Letters as often as in English, more or less. */
static const char letters[] = "eeeeeeetttttaaaaooooiiinnnssshhhrrrddlluuccmmwfgypbvk";

static void make_words(struct usw_content *content)
{
	uint64_t random = usw_mix(content->seed ^ WORDS);

	for (unsigned int i = 0; i < WORDS; i++) {
		unsigned int length = 2 + (unsigned int)usw_random_below(&random, 9);

		for (unsigned int j = 0; j < length; j++)
			content->words[i][j] =
				letters[usw_random_below(&random, sizeof(letters) - 1)];
		content->words[i][length] = ' ';
		content->word_bytes[i] = (uint8_t)(length + 1);
	}
}

int usw_content_init(struct usw_content *content, const char *name, uint64_t seed)
{
	*content = (struct usw_content){.seed = seed};
	if (strcmp(name, "text") == 0)
		content->kind = USW_CONTENT_TEXT;
	else if (strcmp(name, "mixed") == 0)
		content->kind = USW_CONTENT_MIXED;
	else if (strcmp(name, "random") == 0)
		content->kind = USW_CONTENT_RANDOM;
	else
		return -EINVAL;
	make_words(content);
	return 0;
}

int usw_content_init_file(struct usw_content *content, const char *path, uint64_t seed)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat status;
	void *mapped;

	if (fd < 0)
		return -errno;
	if (fstat(fd, &status) < 0 || status.st_size < USW_PAGE_BYTES) {
		close(fd);
		return -ENODATA;
	}
	/* Memory of the file, not of the program: it is not among the pages that are limited. */
	mapped = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_SHARED, fd, 0);
	close(fd);
	if (mapped == MAP_FAILED)
		return -errno;
	*content = (struct usw_content){
		.kind = USW_CONTENT_FILE,
		.seed = seed,
		.file = mapped,
		.file_pages = (uint64_t)status.st_size / USW_PAGE_BYTES,
	};
	return 0;
}

void usw_content_deinit(struct usw_content *content)
{
	if (content->file)
		munmap((void *)(uintptr_t)content->file, content->file_pages * USW_PAGE_BYTES);
	content->file = NULL;
}

static void fill_text(const struct usw_content *content, uint64_t random, char *page)
{
	unsigned int at = 0, words = 0;

	while (at + sizeof(content->words[0]) <= USW_PAGE_BYTES) {
		uint64_t draw = usw_random(&random);
		/* The square of an even draw: low numbers are the frequent words. */
		uint64_t index = ((draw & 0xffff) * (draw >> 16 & 0xffff) * WORDS) >> 32;

		memcpy(page + at, content->words[index], sizeof(content->words[0]));
		at += content->word_bytes[index];
		if (++words % LINE_WORDS == 0)
			page[at - 1] = '\n';
	}
	memset(page + at, ' ', USW_PAGE_BYTES - at);
}

static void fill_random(uint64_t random, uint64_t *page)
{
	for (unsigned int i = 0; i < USW_PAGE_WORDS; i++)
		page[i] = usw_random(&random);
}

static enum usw_content_kind kind_of(const struct usw_content *content, uint64_t chance,
				     bool *ret_zero)
{
	*ret_zero = false;
	if (content->kind != USW_CONTENT_MIXED)
		return content->kind;
	*ret_zero = chance % 4 == 0;
	return chance % 4 == 3 ? USW_CONTENT_RANDOM : USW_CONTENT_TEXT;
}

uint64_t usw_content_tag(const struct usw_content *content, uint64_t number, uint32_t version)
{
	uint64_t chance = usw_mix(content->seed + number);
	bool zero;

	kind_of(content, chance, &zero);
	/* Odd, so that only the pages of zeros have a tag of zero. */
	return zero ? 0 : usw_mix(chance ^ ((uint64_t)version << 32)) | 1;
}

void usw_content_fill(const struct usw_content *content, uint64_t number, uint32_t version,
		      uint64_t *page)
{
	uint64_t chance = usw_mix(content->seed + number);
	uint64_t tag = usw_content_tag(content, number, version);
	bool zero;

	switch (kind_of(content, chance, &zero)) {
	case USW_CONTENT_TEXT:
	case USW_CONTENT_MIXED:
		if (zero)
			memset(page, 0, USW_PAGE_BYTES);
		else
			fill_text(content, chance, (char *)page);
		break;
	case USW_CONTENT_RANDOM:
		fill_random(chance, page);
		break;
	case USW_CONTENT_FILE:
		memcpy(page, content->file + chance % content->file_pages * USW_PAGE_WORDS,
		       USW_PAGE_BYTES);
		break;
	}
	page[usw_content_first_tag(number)] = tag;
	page[usw_content_second_tag(number)] = usw_content_other_tag(tag);
}
