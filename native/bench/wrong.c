// SPDX-License-Identifier: MIT

/**
 * @file
 * See wrong.h. Never called while everything is right, so nothing here is in a hurry.
 */

#include <inttypes.h>

#include "wrong.h"

#define VERSIONS_BACK_MAX 64

static unsigned int versions_older(const struct usw_content *content, uint64_t number,
				   uint32_t version, uint64_t tag)
{
	for (uint32_t back = 1; back <= VERSIONS_BACK_MAX && back <= version; back++)
		if (usw_content_tag(content, number, version - back) == tag)
			return back;
	return 0;
}

static struct usw_wrong_page compare(const uint64_t *expected, const uint64_t *found)
{
	struct usw_wrong_page result = {0};

	for (unsigned int word = 0; word < USW_PAGE_WORDS; word++) {
		result.zero_words += found[word] == 0;
		if (found[word] == expected[word])
			continue;
		if (!result.words++) {
			result.first = word;
			result.expected = expected[word];
			result.found = found[word];
		}
		result.last = word;
	}
	return result;
}

void usw_wrong_compare(struct usw_wrong *wrong, const struct usw_content *content, uint64_t number,
		       uint32_t version, const uint64_t *found, bool by_audit)
{
	uint64_t expected[USW_PAGE_WORDS], tag = found[usw_content_first_tag(number)];
	struct usw_wrong_page page;

	usw_content_fill(content, number, version, expected);
	page = compare(expected, found);
	if (!page.words)
		return;
	page.page = number;
	page.version = version;
	page.by_audit = by_audit;
	if (tag != usw_content_tag(content, number, version))
		page.older_by = versions_older(content, number, version, tag);
	if (wrong->count < USW_WRONG_PAGES_MAX)
		wrong->pages[wrong->count] = page;
	wrong->count++;
}

static unsigned int kept(const struct usw_wrong *wrong)
{
	return wrong->count < USW_WRONG_PAGES_MAX ? (unsigned int)wrong->count
						  : USW_WRONG_PAGES_MAX;
}

void usw_wrong_add(struct usw_wrong *sum, const struct usw_wrong *wrong)
{
	unsigned int at = kept(sum);

	for (unsigned int i = 0; i < kept(wrong) && at < USW_WRONG_PAGES_MAX; i++)
		sum->pages[at++] = wrong->pages[i];
	sum->count += wrong->count;
}

void usw_wrong_print_json(const struct usw_wrong *wrong, FILE *file)
{
	fputc('[', file);
	for (unsigned int i = 0; i < kept(wrong); i++) {
		const struct usw_wrong_page *page = &wrong->pages[i];

		fprintf(file,
			"%s{\"page\": %" PRIu64 ", \"version\": %" PRIu32 ", \"found_by\": \"%s\", "
			"\"wrong_words\": %u, \"first_word\": %u, \"last_word\": %u, "
			"\"zero_words\": %u, \"older_by\": %u, \"expected\": \"%016" PRIx64
			"\", \"found\": \"%016" PRIx64 "\"}",
			i ? ", " : "", page->page, page->version,
			page->by_audit ? "audit" : "access", page->words, page->first, page->last,
			page->zero_words, page->older_by, page->expected, page->found);
	}
	fputc(']', file);
}

void usw_wrong_print_line(const struct usw_wrong *wrong, FILE *file)
{
	const struct usw_wrong_page *page = &wrong->pages[0];

	fprintf(file,
		"workload: wrong content %" PRIu64 " times, first in page %" PRIu64
		" (version %" PRIu32 ", found by %s): %u of %d words are wrong, from %u to %u, "
		"%u words of it are zero",
		wrong->count, page->page, page->version, page->by_audit ? "the audit" : "an access",
		page->words, USW_PAGE_WORDS, page->first, page->last, page->zero_words);
	if (page->older_by)
		fprintf(file, ", it is %u versions old", page->older_by);
	fprintf(file, "; expected %016" PRIx64 ", found %016" PRIx64 "\n", page->expected,
		page->found);
}
