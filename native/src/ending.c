// SPDX-License-Identifier: MIT

/**
 * @file
 * Which pages the kernel will write to when a thread ends. See ending.h.
 */

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/syscall.h>

#include "ending.h"

/* A look is followed by a pause of so many times what it took. */
#define USW_PAUSE_SHARE 4u

void usw_ending_deinit(struct usw_ending *ending)
{
	usw_ranges_free(&ending->pages);
	free(ending->threads);
	*ending = (struct usw_ending){0};
}

/**
 * The page with a thread's list of robust mutexes. 0: it has none yet, or none any more, or it is
 * not for us to know. The address is what the program says.
 */
static uint64_t list_page(int thread)
{
	uintptr_t head = 0;
	size_t bytes;

	if (syscall(SYS_get_robust_list, thread, &head, &bytes) < 0 || head >= USW_ADDRESS_END)
		return 0;
	return usw_page_floor(head);
}

static int compare_threads(const void *left, const void *right)
{
	const struct usw_ending_thread *a = left, *b = right;

	return (a->id > b->id) - (a->id < b->id);
}

/** One of the first `count` threads, which are in order. NULL: it is not among them. */
static struct usw_ending_thread *find_thread(const struct usw_ending *ending, uint32_t count,
					     int id)
{
	const struct usw_ending_thread key = {.id = id};

	return count ? bsearch(&key, ending->threads, count, sizeof(key), compare_threads) : NULL;
}

/**
 * The page of a thread. The kernel forgets the list when the thread ends, before it clears the ID:
 * then it is what it was at the last look.
 */
static uint64_t thread_page(const struct usw_ending *ending, int id)
{
	const struct usw_ending_thread *known = find_thread(ending, ending->count, id);
	uint64_t page = list_page(id);

	return !page && known ? known->page : page;
}

static bool add_thread(struct usw_ending *ending, int id, uint64_t page)
{
	if (ending->count == ending->capacity) {
		uint32_t capacity = ending->capacity ? 2 * ending->capacity : 16;
		void *threads = realloc(ending->threads, capacity * sizeof(*ending->threads));

		if (!threads)
			return false;
		ending->threads = threads;
		ending->capacity = capacity;
	}
	ending->threads[ending->count++] = (struct usw_ending_thread){.id = id, .page = page};
	return !page || usw_ranges_add(&ending->pages, page, page + USW_PAGE_BYTES);
}

/** Add all threads in a folder of /proc. False: no memory, or the process is gone. */
static bool add_threads(struct usw_ending *ending, const struct usw_ending *before, int folder)
{
	static char entries[32u << 10]; // reclaim thread only
	long got;

	while ((got = syscall(SYS_getdents64, folder, entries, sizeof(entries))) > 0) {
		for (long at = 0; at < got;) {
			const struct dirent64 *entry = (const void *)&entries[at];
			int id = atoi(entry->d_name); // "." and ".." are 0

			if (id > 0 && !add_thread(ending, id, thread_page(before, id)))
				return false;
			at += entry->d_reclen;
		}
	}
	return got == 0 && ending->count;
}

static void sort_threads(struct usw_ending *ending)
{
	qsort(ending->threads, ending->count, sizeof(*ending->threads), compare_threads);
}

/**
 * Add the threads of before that /proc has left out though they live: its list is read on by
 * position, and skips one for each that ends before it.
 */
static bool add_left_out(struct usw_ending *ending, const struct usw_ending *before, int pid)
{
	uint32_t listed = ending->count;

	sort_threads(ending);
	for (uint32_t i = 0; i < before->count; i++) {
		int id = before->threads[i].id;

		if (!find_thread(ending, listed, id) &&
		    (syscall(SYS_tgkill, pid, id, 0) == 0 || errno != ESRCH) &&
		    !add_thread(ending, id, before->threads[i].page))
			return false;
	}
	if (ending->count > listed)
		sort_threads(ending);
	return true;
}

void usw_ending_look(struct usw_ending *ending, int pid)
{
	struct usw_ending now = {0};
	uint64_t since_ns = usw_now_ns();
	char path[64];

	if (since_ns < ending->due_ns)
		return;
	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	_cleanup_close_ int folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (folder >= 0 && add_threads(&now, ending, folder) && add_left_out(&now, ending, pid)) {
		usw_ending_deinit(ending);
		*ending = now;
	} else {
		usw_ending_deinit(&now);
	}
	uint64_t now_ns = usw_now_ns();
	ending->due_ns = now_ns + USW_PAUSE_SHARE * (now_ns - since_ns);
}
