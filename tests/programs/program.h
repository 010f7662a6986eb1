// SPDX-License-Identifier: MIT

/**
 * @file
 * What the self-checking programs share: a seeded pattern, and a way to have memory evicted.
 *
 * Every program fills memory with words that follow from (seed, page index, word index) and looks
 * at all of them again after something was done to the memory. The index counts from the start of
 * the buffer, not from address zero, so a page that turns up at the wrong place is found as well
 * as a page with wrong content. Exit status: 0 every byte was right, 1 something was wrong (one
 * line on stderr says what and where), 77 the kernel lacks what the check needs.
 *
 * evict() does not ask the pager for anything. It writes to a ballast larger than the limit until
 * /proc/self/pagemap shows that the range is out, so a check can never pass because nothing was
 * evicted. Without a limit (a bare run) it does nothing, and the same check must hold.
 *
 * Messages go out by dprintf(), never stdio: the heap belongs to the checks.
 */

#ifndef PROGRAM_H
#define PROGRAM_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE_BYTES 4096ul
#define PAGE_WORDS (PAGE_BYTES / sizeof(uint64_t))
#define HUGE_BYTES (2ul << 20)
#define EXIT_SKIPPED 77
#define EVICT_ROUNDS_MAX 60

#define ARRAY_COUNT(a) (sizeof(a) / sizeof((a)[0]))
#define UNUSED __attribute__((unused))

/* The session's limit on resident memory, 0 in a bare run. */
static size_t limit_bytes;
static uint64_t seed = 1;

/* ------------------------------------------------------------------ messages */

UNUSED _Noreturn __attribute__((format(printf, 1, 2))) static void fail(const char *format, ...)
{
	char text[512];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	dprintf(STDERR_FILENO, "%s[%d]: %s\n", program_invocation_short_name, getpid(), text);
	_exit(1);
}

UNUSED _Noreturn static void skip(const char *missing)
{
	dprintf(STDOUT_FILENO, "skipped: %s\n", missing);
	_exit(EXIT_SKIPPED);
}

#define CHECK(condition, ...) \
	do { \
		if (!(condition)) \
			fail(__VA_ARGS__); \
	} while (0)

/* For calls that fail with -1 and errno. */
#define CHECK_CALL(call) \
	CHECK((call) != -1, "%s:%d: %s: %s", __FILE__, __LINE__, #call, strerror(errno))

/* For pthread calls, which return the error. */
#define CHECK_THREAD(call) \
	do { \
		int check_error = (call); \
		CHECK(!check_error, "%s:%d: %s: %s", __FILE__, __LINE__, #call, \
		      strerror(check_error)); \
	} while (0)

/* ------------------------------------------------------------------ arguments, time, chance */

UNUSED static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* "64M" and the like; exits on anything else. */
UNUSED static size_t parse_bytes(const char *text)
{
	char *end;
	size_t value = strtoull(text, &end, 10);

	if (*end == 'K')
		value <<= 10;
	else if (*end == 'M')
		value <<= 20;
	else if (*end == 'G')
		value <<= 30;
	CHECK(end != text && (!*end || !end[1]), "not a size: %s", text);
	return value;
}

/* The finaliser of splitmix64: every input bit changes every output bit. */
UNUSED static inline uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15u;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
	return x ^ (x >> 31);
}

/* A random number below `bound` from a state of the caller's, so threads need no lock. */
UNUSED static inline uint64_t random_below(uint64_t *state, uint64_t bound)
{
	return mix((*state)++) % bound;
}

/* ------------------------------------------------------------------ the pattern */

/*
 * Of 16 pages one is zero, two repeat a word, three are noise and the rest are small numbers with
 * a common high half: each kind of backend gets its share. Few are zero, for a page that was lost
 * reads as zeros.
 */
UNUSED static inline uint64_t page_word(uint64_t page_seed, uint64_t index, uint64_t word)
{
	uint64_t base = mix(page_seed * 0x10001 + index);

	switch (index % 16) {
	case 5:
		return 0;
	case 3:
	case 11:
		return base;
	case 0:
	case 7:
	case 13:
		return mix(base + word);
	default:
		return (base & 0xffffffff00000000u) | (mix(base + word) & 0xffff);
	}
}

UNUSED static void fill(void *start, size_t pages, uint64_t page_seed, uint64_t first_index)
{
	uint64_t *words = start;

	for (size_t page = 0; page < pages; page++)
		for (size_t word = 0; word < PAGE_WORDS; word++)
			*words++ = page_word(page_seed, first_index + page, word);
}

/* True if one page holds its pattern. */
UNUSED static bool page_holds(const void *page, uint64_t page_seed, uint64_t index)
{
	const uint64_t *words = page;

	for (size_t word = 0; word < PAGE_WORDS; word++)
		if (words[word] != page_word(page_seed, index, word))
			return false;
	return true;
}

UNUSED static bool page_is_zero(const void *page)
{
	const uint64_t *words = page;

	for (size_t word = 0; word < PAGE_WORDS; word++)
		if (words[word])
			return false;
	return true;
}

UNUSED static void verify(const void *start, size_t pages, uint64_t page_seed, uint64_t first_index,
			  const char *what)
{
	const uint64_t *words = start;

	for (size_t page = 0; page < pages; page++)
		for (size_t word = 0; word < PAGE_WORDS; word++, words++) {
			uint64_t want = page_word(page_seed, first_index + page, word);

			CHECK(*words == want, "%s: page %zu at %p, word %zu: %#lx, expected %#lx",
			      what, page, (const void *)words, word, *words, want);
		}
}

UNUSED static void verify_zero(const void *start, size_t pages, const char *what)
{
	const uint64_t *words = start;

	for (size_t word = 0; word < pages * PAGE_WORDS; word++)
		CHECK(!words[word], "%s: page %zu at %p, word %zu: %#lx, expected zero", what,
		      word / PAGE_WORDS, (const void *)&words[word], word % PAGE_WORDS,
		      words[word]);
}

/* ------------------------------------------------------------------ memory and where it is */

UNUSED static void *map_pages(size_t pages)
{
	void *start = mmap(NULL, pages * PAGE_BYTES, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(start != MAP_FAILED, "mmap of %zu pages: %s", pages, strerror(errno));
	return start;
}

UNUSED static void unmap_pages(void *start, size_t pages)
{
	CHECK_CALL(munmap(start, pages * PAGE_BYTES));
}

/* Room for pages at a known place that nothing else uses. */
UNUSED static void *reserve_pages(size_t pages)
{
	void *start = mmap(NULL, pages * PAGE_BYTES, PROT_NONE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	CHECK(start != MAP_FAILED, "mmap of %zu pages: %s", pages, strerror(errno));
	return start;
}

/* Move pages over whatever is in a place. */
UNUSED static void move_pages_over(void *from, void *to, size_t pages, int flags)
{
	CHECK(mremap(from, pages * PAGE_BYTES, pages * PAGE_BYTES,
		     MREMAP_MAYMOVE | MREMAP_FIXED | flags, to) == to,
	      "mremap: %s", strerror(errno));
}

/* Map pages over whatever is in a place. */
UNUSED static void map_pages_over(void *start, size_t pages)
{
	CHECK(mmap(start, pages * PAGE_BYTES, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == start,
	      "mmap: %s", strerror(errno));
}

UNUSED static void *page_at(void *start, size_t page)
{
	return (char *)start + page * PAGE_BYTES;
}

/* How many pages of the range are in memory, by the page tables. */
UNUSED static size_t present_pages(const void *start, size_t pages)
{
	uint64_t entries[512];
	uint64_t first = (uintptr_t)start / PAGE_BYTES;
	size_t present = 0;
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

	CHECK(fd >= 0, "/proc/self/pagemap: %s", strerror(errno));
	for (size_t done = 0; done < pages;) {
		size_t count = pages - done < ARRAY_COUNT(entries) ? pages - done
								   : ARRAY_COUNT(entries);
		size_t bytes = count * sizeof(entries[0]);

		CHECK(pread(fd, entries, bytes, (off_t)((first + done) * sizeof(entries[0]))) ==
			      (ssize_t)bytes,
		      "short read of pagemap");
		for (size_t i = 0; i < count; i++)
			present += entries[i] >> 63;
		done += count;
	}
	close(fd);
	return present;
}

/*
 * Walk once over a ballast of one and a half times the limit. Each page carries its round, checked on the next
 * one: the ballast is memory under test like any other. Not for two threads at once.
 */
UNUSED static void press(void)
{
	static uint64_t *ballast;
	static uint64_t round;
	size_t pages = limit_bytes / 2 * 3 / PAGE_BYTES;

	if (!limit_bytes)
		return;
	if (!ballast)
		ballast = map_pages(pages);
	for (size_t page = 0; page < pages; page++) {
		uint64_t *word = ballast + page * PAGE_WORDS;

		CHECK(*word == (round ? mix(page) + round : 0),
		      "ballast: page %zu at %p: %#lx in round %lu", page, (void *)word, *word,
		      round);
		*word = mix(page) + round + 1;
	}
	round++;
}

/*
 * Press until no more than an eighth of the range is in memory. What is let pass, because nobody who
 * evicts has had a processor for a while, makes rounds that take no time: they need pauses.
 */
UNUSED static void evict(const void *start, size_t pages)
{
	if (!limit_bytes)
		return;
	for (int round = 0; present_pages(start, pages) > pages / 8; round++) {
		CHECK(round < EVICT_ROUNDS_MAX,
		      "not evicted in %d rounds of pressure: %zu of %zu pages at %p", round,
		      present_pages(start, pages), pages, start);
		press();
		usleep(1000u * (useconds_t)round);
	}
}

/* A buffer with the pattern of `page_seed`, evicted. */
UNUSED static void *evicted_pages(size_t pages, uint64_t page_seed)
{
	void *start = map_pages(pages);

	fill(start, pages, page_seed, 0);
	evict(start, pages);
	return start;
}

/* ------------------------------------------------------------------ children */

/* Wait for a child that must exit with 0, whatever the signals meanwhile. */
UNUSED static void expect_child_ok(pid_t child, const char *what)
{
	int status;
	pid_t reaped;

	do
		reaped = waitpid(child, &status, 0);
	while (reaped < 0 && errno == EINTR);
	CHECK(reaped == child, "%s: waitpid: %s", what, strerror(errno));
	if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_SKIPPED)
		_exit(EXIT_SKIPPED);
	CHECK(WIFEXITED(status) && !WEXITSTATUS(status), "%s: child ended with status %#x", what,
	      (unsigned int)status);
}

/* ------------------------------------------------------------------ the list of checks */

struct check {
	const char *name;
	void (*run)(void);
};

/* main() of a program with many checks: NAME [LIMIT [SEED]], or --list. */
UNUSED static int run_checks(const struct check *checks, size_t count, int argc, char **argv)
{
	CHECK(argc >= 2, "usage: %s NAME [LIMIT [SEED]] | --list", argv[0]);
	if (argc > 2)
		limit_bytes = parse_bytes(argv[2]);
	if (argc > 3)
		seed = strtoull(argv[3], NULL, 0);
	for (size_t i = 0; i < count; i++) {
		if (!strcmp(argv[1], "--list")) {
			dprintf(STDOUT_FILENO, "%s\n", checks[i].name);
		} else if (!strcmp(argv[1], checks[i].name)) {
			checks[i].run();
			dprintf(STDOUT_FILENO, "%s: ok\n", checks[i].name);
			return 0;
		}
	}
	CHECK(!strcmp(argv[1], "--list"), "no such check: %s", argv[1]);
	return 0;
}

#endif /* PROGRAM_H */
