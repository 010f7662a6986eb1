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
#include "task.h"

/*
 * A look is followed by a pause of so many times the work that it was; and of as long as it took, if
 * that is no longer than this: it may have waited for a lock that the program holds most of the time.
 */
#define USW_PAUSE_SHARE 4u
#define USW_PAUSE_WAITED_NS 10000000u
/* So many robust mutexes of one thread are looked at. */
#define USW_HELD_MAX 64u

/** What the kernel finds at a thread's list: <linux/futex.h>. Bit 0 of an entry says PI. */
struct robust_list {
	uint64_t next;
	int64_t futex_offset;
	uint64_t pending; /* being locked or unlocked */
};

void usw_ending_deinit(struct usw_ending *ending)
{
	usw_ranges_free(&ending->pages);
	free(ending->threads);
	*ending = (struct usw_ending){0};
}

/**
 * Where a thread has its list of robust mutexes. 0: it has none yet, or none any more, or it is not
 * for us to know. The address is what the program says.
 */
static uint64_t list_head(int thread)
{
	uintptr_t head = 0;
	size_t bytes;

	if (syscall(SYS_get_robust_list, thread, &head, &bytes) < 0 || head >= USW_ADDRESS_END)
		return 0;
	return head;
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
 * The list of a thread. The kernel forgets it when the thread ends, before it clears the ID: then
 * it is what it was at the last look.
 */
static uint64_t thread_list(const struct usw_ending *ending, int id)
{
	const struct usw_ending_thread *known = find_thread(ending, ending->count, id);
	uint64_t head = list_head(id);

	return !head && known ? known->head : head;
}

static bool add_page(struct usw_ending *ending, uint64_t address)
{
	uint64_t page = usw_page_floor(address);

	return address < USW_PAGE_BYTES || address >= USW_ADDRESS_END ||
	       usw_ranges_add(&ending->pages, page, page + USW_PAGE_BYTES);
}

/**
 * Add what the kernel touches of the mutexes on a list: the entry, and the word beside it. Through
 * /proc/PID/mem, because that waits for nobody: a page that has left ends the list here. All that
 * is read is what the program says. False: no memory.
 */
static bool add_held(struct usw_ending *ending, int memory, uint64_t head)
{
	struct robust_list list;
	bool fits = true;

	if (pread(memory, &list, sizeof(list), (off_t)head) != sizeof(list))
		return true;
	uint64_t entry = list.pending & ~UINT64_C(1);
	uint64_t next = list.next;
	for (uint32_t i = 0; fits && i < USW_HELD_MAX; i++) {
		if (entry && entry < USW_ADDRESS_END)
			fits = add_page(ending, entry) &&
			       add_page(ending, entry + (uint64_t)list.futex_offset);
		entry = next & ~UINT64_C(1);
		if (entry == head || !entry || entry >= USW_ADDRESS_END)
			break;
		if (pread(memory, &next, sizeof(next), (off_t)entry) != sizeof(next))
			next = 0;
	}
	return fits;
}

static bool add_thread(struct usw_ending *ending, int memory, int id, uint64_t head)
{
	if (ending->count == ending->capacity) {
		uint32_t capacity = ending->capacity ? 2 * ending->capacity : 16;
		void *threads = realloc(ending->threads, capacity * sizeof(*ending->threads));

		if (!threads)
			return false;
		ending->threads = threads;
		ending->capacity = capacity;
	}
	ending->threads[ending->count++] = (struct usw_ending_thread){.id = id, .head = head};
	return !head || (add_page(ending, head) && add_held(ending, memory, head));
}

/** Add all threads in a folder of /proc. False: no memory, or the process is gone. */
static bool add_threads(struct usw_ending *ending, const struct usw_ending *before, int folder,
			int memory)
{
	static char entries[32u << 10]; // reclaim thread only
	long got;

	while ((got = syscall(SYS_getdents64, folder, entries, sizeof(entries))) > 0) {
		for (long at = 0; at < got;) {
			const struct dirent64 *entry = (const void *)&entries[at];
			int id = atoi(entry->d_name); // "." and ".." are 0

			if (id > 0 && !add_thread(ending, memory, id, thread_list(before, id)))
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
static bool add_left_out(struct usw_ending *ending, const struct usw_ending *before, int pid,
			 int memory)
{
	uint32_t listed = ending->count;

	sort_threads(ending);
	for (uint32_t i = 0; i < before->count; i++) {
		int id = before->threads[i].id;

		if (!find_thread(ending, listed, id) &&
		    (syscall(SYS_tgkill, pid, id, 0) == 0 || errno != ESRCH) &&
		    !add_thread(ending, memory, id, before->threads[i].head))
			return false;
	}
	if (ending->count > listed)
		sort_threads(ending);
	return true;
}

bool usw_ending_look(struct usw_ending *ending, int pid)
{
	struct usw_ending now = {0};
	char path[64];

	uint64_t since_ns = usw_now_ns();
	if (since_ns < ending->due_ns)
		return false;
	uint64_t before_ns = usw_processor_ns();
	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	_cleanup_close_ int folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	_cleanup_close_ int memory = usw_task_open(pid, "mem");
	bool is_known = folder >= 0 && add_threads(&now, ending, folder, memory) &&
			add_left_out(&now, ending, pid, memory);
	if (is_known) {
		usw_ending_deinit(ending);
		*ending = now;
	} else {
		usw_ending_deinit(&now);
	}
	uint64_t worked = USW_PAUSE_SHARE * (usw_processor_ns() - before_ns);
	uint64_t now_ns = usw_now_ns();
	uint64_t waited = usw_min(now_ns - since_ns, USW_PAUSE_WAITED_NS);
	ending->due_ns = now_ns + usw_max(worked, waited);
	return is_known;
}
