// SPDX-License-Identifier: MIT

/**
 * @file
 * What the test programs share: checks that say what they saw, page contents that follow from a
 * seed, and a reader that goes without locks as the fault path does.
 *
 * A check that fails prints one line and ends the program with status 1, from any thread. Every
 * program begins with check_start(), so that a hang ends too.
 */

#ifndef USW_TESTS_CHECK_H
#define USW_TESTS_CHECK_H

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "vswap.h"

#define CHECK_PAGE_WORDS (USW_PAGE_BYTES / sizeof(uint64_t))
#define CHECK_SEED 0x75666664u

#define CHECK(x) \
	do { \
		if (!(x)) \
			check_failed(__FILE__, __LINE__, #x, 0, 0); \
	} while (0)

/** Two integers, a relation, and both values when it does not hold. */
#define CHECK_THAT(a, relation, b) \
	do { \
		uint64_t check_a = (uint64_t)(a), check_b = (uint64_t)(b); \
		if (!(check_a relation check_b)) \
			check_failed(__FILE__, __LINE__, #a " " #relation " " #b, check_a, \
				     check_b); \
	} while (0)

#define CHECK_EQ(a, b) CHECK_THAT(a, ==, b)

/**
 * The statement must end its process through usw_assert(). Only while there is one thread. Spaces
 * are shared memory: what the child wrote there before it died stays.
 */
#define CHECK_ABORTS(statement) \
	do { \
		pid_t check_child = fork(); \
		CHECK(check_child >= 0); \
		if (check_child == 0) { \
			check_be_quiet(); \
			statement; \
			_exit(0); \
		} \
		check_aborted(__FILE__, __LINE__, #statement, check_child); \
	} while (0)

_Noreturn static inline void check_failed(const char *file, int line, const char *what, uint64_t a,
					  uint64_t b)
{
	dprintf(STDERR_FILENO, "%s:%d: failed: %s (%lld, %lld; %#llx, %#llx)\n", file, line, what,
		(long long)a, (long long)b, (unsigned long long)a, (unsigned long long)b);
	_exit(1);
}

/** For a child that is expected to abort: no core file, nothing on stderr. */
static inline void check_be_quiet(void)
{
	struct rlimit none = {0, 0};
	int null = open("/dev/null", O_WRONLY | O_CLOEXEC);

	setrlimit(RLIMIT_CORE, &none);
	prctl(PR_SET_DUMPABLE, 0);
	if (null >= 0)
		dup2(null, STDERR_FILENO);
}

static inline void check_aborted(const char *file, int line, const char *what, pid_t child)
{
	int status = 0;

	while (waitpid(child, &status, 0) < 0 && errno == EINTR)
		;
	if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGABRT)
		check_failed(file, line, what, (uint64_t)status, SIGABRT);
}

/** Nothing hangs: the program dies of SIGALRM after this time. */
static inline void check_start(unsigned int limit_seconds)
{
	alarm(limit_seconds);
}

/** A small generator, one state a thread (splitmix64). */
static inline uint64_t check_random(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15u;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
	z = (z ^ z >> 27) * 0x94d049bb133111ebu;
	return z ^ z >> 31;
}

enum check_kind {
	CHECK_ZERO,     /* all zeros */
	CHECK_REPEATED, /* one word */
	CHECK_TINY,     /* one word differs: the smallest objects there are */
	CHECK_TEXT,     /* compresses to about a third */
	CHECK_RANDOM,   /* does not compress */
	CHECK_KINDS,
};

/** Fill a page: equal (kind, seed) give equal pages, other seeds others (but for ZERO). */
static inline void check_fill(void *page, enum check_kind kind, uint64_t seed)
{
	uint64_t *words = page;
	uint64_t state = seed * CHECK_KINDS + kind;

	for (size_t i = 0; i < CHECK_PAGE_WORDS; i++) {
		switch (kind) {
		case CHECK_ZERO:
			words[i] = 0;
			break;
		case CHECK_REPEATED:
			words[i] = seed * 0x9e3779b97f4a7c15u + 1;
			break;
		case CHECK_TINY:
			words[i] = i == 0 ? seed + 1 : 0;
			break;
		case CHECK_TEXT:
			words[i] = i % 3 == 0 ? check_random(&state) : seed;
			break;
		case CHECK_RANDOM:
		case CHECK_KINDS:
			words[i] = check_random(&state);
			break;
		}
	}
}

/**
 * A page of made-up words, of the 64 of a vocabulary (from 1 on): each is anywhere, so that a page alone
 * says little of the next.
 */
__attribute__((unused)) static void check_fill_words(char *page, uint64_t vocabulary, uint64_t seed)
{
	uint64_t state = seed * 2 + 1;

	for (size_t at = 0; at < 4096;) {
		uint64_t word = vocabulary * 64 + check_random(&state) % 64;
		uint64_t length = 6 + check_random(&word) % 11;

		for (size_t i = 0; i <= length && at < 4096; i++)
			page[at++] = i < length ? (char)('a' + check_random(&word) % 26) : ' ';
	}
}

enum check_read {
	CHECK_READ_RIGHT,   /* the page holds what the hash says */
	CHECK_READ_CORRUPT, /* the content is there, and it is wrong */
};

/** Copy a page that its owner may overwrite meanwhile. */
USW_OPTIMISTIC __attribute__((unused)) static void check_copy_racing(void *page, const void *source)
{
	const volatile uint64_t *from = source;
	uint64_t *to = page;

	for (size_t i = 0; i < CHECK_PAGE_WORDS; i++)
		to[i] = from[i];
}

/**
 * The optimistic read of vswap.h. The caller holds a reference to the ID. `standby` are the slots
 * of group 0. Content is given up as wrong only if the word is the same before and after, three
 * times: a reader that is held up may find content at the place it had left in the meantime.
 */
static inline enum check_read check_read(const struct usw_vswap *vswap, const char *standby,
					 uint32_t id, void *page)
{
	for (unsigned int unchanged = 0; unchanged < 3;) {
		uint64_t word = usw_vswap_word(vswap, id);
		uint64_t hash = usw_vswap_hash(vswap, id);
		uint64_t place = usw_word_place(word);
		struct usw_object object;
		bool complete = false;

		switch (usw_word_backend(word)) {
		case USW_BACKEND_FREE:
			CHECK(!"the ID is free although a reference is held");
			break;
		case USW_BACKEND_ZERO:
			memset(page, 0, USW_PAGE_BYTES);
			return CHECK_READ_RIGHT;
		case USW_BACKEND_SAME:
			usw_codec_repeat(page, hash);
			return CHECK_READ_RIGHT;
		case USW_BACKEND_MEMORY:
			check_copy_racing(page, standby + usw_place_index(place) * USW_PAGE_BYTES);
			complete = true;
			break;
		case USW_BACKEND_OBJECT:
			complete = usw_segments_find(vswap->segments, usw_place_group(place),
						     usw_place_index(place), &object) &&
				   usw_codec_decompress(object.codec, object.bytes,
							object.length_bytes, page) == 0;
			break;
		}
		if (complete && usw_codec_hash(page, CHECK_SEED) == hash)
			return CHECK_READ_RIGHT;
		// The word that is looked at now must not be older than what was read.
#if !defined(__SANITIZE_THREAD__) // which knows no fences, and needs none
		__atomic_thread_fence(__ATOMIC_ACQUIRE);
#endif
		unchanged = usw_vswap_word(vswap, id) == word ? unchanged + 1 : 0;
	}
	return CHECK_READ_CORRUPT;
}

#endif /* USW_TESTS_CHECK_H */
