// SPDX-License-Identifier: MIT

/**
 * @file
 * The life of a target outside faults and evictions. See target.h.
 */

#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <linux/magic.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>

#include "priority.h"
#include "ring.h"
#include "session.h"
#include "task.h"
#include "uffd.h"

/* The larger of the two sizes of huge pages. */
#define USW_GIANT_BYTES (1u << 30)

/* Slots a target's standby uses as a ring: 4 MiB, twice a huge page. */
#define USW_STANDBY_RING_SLOTS 1024u
/* Runs of zero pages found by one scan. */
#define USW_ZERO_REGIONS 64u

struct usw_target *usw_target_create(struct usw_session *session)
{
	struct usw_target *target = calloc(1, sizeof(*target));
	if (!target)
		return NULL;

	target->deferred = calloc(USW_DEFERRED_MAX, sizeof(*target->deferred));
	if (!target->deferred || getrandom(&target->token, sizeof(target->token), 0) < 0) {
		free(target->deferred);
		free(target);
		return NULL;
	}
	target->token |= 1; // never 0: a child that reads 0 was not registered
	target->session = session;
	target->pagemap.nodes = &session->nodes;
	target->hands_processor = -1;
	target->standby.number = USW_STANDBY_MAX;
	target->eligible_stale = true;
	pthread_mutex_init(&target->map_lock, NULL);
	pthread_mutex_init(&target->stretches_lock, NULL);
	usw_leaving_init(&target->leaving);
	usw_clusters_init(&target->clusters);
	target->uffd = target->pidfd = target->statm_fd = target->maps_fd = -1;
	target->pagemap_fd = target->smaps_fd = target->area_fd = target->connection = -1;
	return target;
}

void usw_target_destroy(struct usw_target *target)
{
	if (!target)
		return;
	usw_standby_deinit(&target->standby);
	if (target->ring)
		munmap(target->ring, USW_RING_BYTES);
	usw_ranges_free(&target->registered);
	usw_ranges_free(&target->maybe_wiped);
	usw_ranges_free(&target->maybe_left);
	usw_leaving_deinit(&target->leaving);
	usw_ending_deinit(&target->ending);
	usw_maps_free(&target->eligible);
	usw_ranges_free(&target->refused);
	int fds[] = {target->uffd,       target->pidfd,    target->statm_fd, target->maps_fd,
		     target->pagemap_fd, target->smaps_fd, target->area_fd,  target->connection};
	for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++)
		usw_cleanup_close(&fds[i]);
	pthread_mutex_destroy(&target->map_lock);
	pthread_mutex_destroy(&target->stretches_lock);
	free(target->deferred);
	free(target);
}

static int attach_error(struct usw_error *error, int code, const char *text)
{
	error->code = -code;
	snprintf(error->text, sizeof(error->text), "%s", text);
	return code;
}

/** The area must not change its size under us, nor be made of huge pages that may run out. */
static bool area_is_sound(int fd)
{
	int seals = fcntl(fd, F_GET_SEALS);
	struct stat status;
	struct statfs files;

	return seals >= 0 && (seals & F_SEAL_SHRINK) && (seals & F_SEAL_GROW) &&
	       fstat(fd, &status) == 0 && status.st_size == USW_AREA_MEMFD_BYTES &&
	       fstatfs(fd, &files) == 0 && files.f_type == TMPFS_MAGIC;
}

/**
 * Threads that serve others read these. What is in /proc the kernel says, soon and to its end; any
 * other file may have as many mappings as its maker likes, all of which would be kept in memory.
 */
static bool are_of_proc(const int *fds)
{
	static const enum usw_hello_fd which[] = {USW_FD_MAPS, USW_FD_PAGEMAP, USW_FD_SMAPS};
	struct statfs files;

	for (size_t i = 0; i < sizeof(which) / sizeof(which[0]); i++)
		if (fstatfs(fds[which[i]], &files) < 0 || files.f_type != PROC_SUPER_MAGIC)
			return false;
	return true;
}

/** Forget what a child has as zeros by its own smaps. 0 or -errno. Caller holds map_lock. */
static int leave_out_wiped(struct usw_target *child)
{
	struct usw_maps_advised advised;
	int ret = usw_maps_advised(child->smaps_fd, &advised);

	for (uint32_t i = 0; !ret && i < advised.wiped.count; i++)
		usw_target_forget(child, advised.wiped.at[i].start, advised.wiped.at[i].end);
	usw_maps_advised_free(&advised);
	return ret;
}

/**
 * What a forked child has as zeros is what its own smaps says: that of its parent may have been read
 * after the advice was taken back, or given, or the memory was gone.
 */
static void settle_wiped(struct usw_target *child)
{
	uint64_t address = 0;
	bool has_some = usw_pagemap_next(&child->pagemap, &address, USW_ADDRESS_END);

	if (has_some && leave_out_wiped(child))
		usw_target_wipe(child);
	else
		child->inherited_unchecked = false;
	atomic_store(&child->may_be_wiped, false);
}

int usw_target_attach(struct usw_target *target, const struct usw_hello *hello, const int *fds,
		      int pidfd, int pid, int connection, struct usw_error *error)
{
	if (hello->area_start % USW_HUGE_BYTES || hello->area_start > USW_ADDRESS_END ||
	    hello->token_page % USW_PAGE_BYTES || hello->token_page > USW_ADDRESS_END)
		return attach_error(error, -EPROTO, "the hello's addresses make no sense");
	if (!area_is_sound(fds[USW_FD_AREA]))
		return attach_error(error, -EPROTO,
				    "the area is not a sealed memfd of the right size");
	if (!are_of_proc(fds))
		return attach_error(error, -EPROTO, "its maps, pagemap or smaps are not of /proc");

	// The pid may have been reused before statm was opened; then the pidfd is dead.
	_cleanup_close_ int statm_fd = usw_task_open(pid, "statm");
	if (statm_fd < 0 || syscall(SYS_pidfd_send_signal, pidfd, 0, NULL, 0) < 0)
		return attach_error(error, -ESRCH, "the process is gone");

	void *ring =
		mmap(NULL, USW_RING_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fds[USW_FD_AREA], 0);
	if (ring == MAP_FAILED)
		return attach_error(error, -errno, "cannot map the command ring");
	usw_space_keep_small(ring, USW_RING_BYTES);
	int ret = usw_standby_init(&target->standby, &target->session->standbys, fds[USW_FD_AREA],
				   USW_STANDBY_RING_SLOTS);
	if (ret) {
		munmap(ring, USW_RING_BYTES);
		return attach_error(error, ret, "cannot map the standby slots");
	}

	// From here on the kernel says with each word who sends it: see usw_ring_sender().
	setsockopt(connection, SOL_SOCKET, SO_PASSCRED, &(int){1}, sizeof(int));
	target->pid = pid;
	target->is_below = usw_task_is_below(pid);
	target->pidfd = pidfd;
	target->statm_fd = statm_fd;
	statm_fd = -1;
	target->connection = connection;
	target->maps_fd = fds[USW_FD_MAPS];
	target->pagemap_fd = fds[USW_FD_PAGEMAP];
	target->smaps_fd = fds[USW_FD_SMAPS];
	target->area_fd = fds[USW_FD_AREA];
	target->area_start = hello->area_start;
	target->token_page = hello->token_page;
	target->posted_seq = ((struct usw_ring *)ring)->posted_seq;
	((struct usw_ring *)ring)->epoch = target->epoch;
	settle_wiped(target);
	__atomic_store_n(&target->ring, ring, __ATOMIC_RELEASE);
	atomic_store(&target->has_hands, true);
	return 0;
}

int usw_target_register_stages(struct usw_target *target)
{
	int ret = usw_uffd_register(target->uffd, target->area_start + USW_AREA_STAGE_IN_OFFSET,
				    USW_HUGE_BYTES);

	return ret ? ret
		   : usw_uffd_register(target->uffd, target->area_start + USW_AREA_HUGE_IN_OFFSET,
				       USW_HUGE_BYTES);
}

int usw_target_arm(struct usw_target *target)
{
	if (atomic_load(&target->inherited_unchecked))
		return -EAGAIN; // its page map may tell of memory that it did not inherit
	if (atomic_load(&target->armed))
		return 0;
	// First of all: a fork from here on has a token to find (see wire.h).
	int ret = usw_uffd_register(target->uffd, target->token_page, USW_PAGE_BYTES);

	if (ret)
		atomic_store(&target->broken, true);
	atomic_store(&target->armed, true);
	return ret;
}

void usw_target_forget(struct usw_target *target, uint64_t start, uint64_t end)
{
	uint64_t address = start;
	usw_page_word *word;

	while ((word = usw_pagemap_next(&target->pagemap, &address, end))) {
		uint64_t before = atomic_load_explicit(word, memory_order_acquire);

		// In flight only if hands never answered; the target is being killed then.
		usw_assert(usw_page_state(before) != USW_PAGE_EVICTING ||
			   atomic_load(&target->broken));
		atomic_store_explicit(word, 0, memory_order_release);
		if (usw_page_id(before))
			usw_vswap_put(&target->session->vswap, usw_page_id(before));
		address += USW_PAGE_BYTES;
	}
}

/**
 * Protect the zero pages that reads have mapped before the range was registered: each would become
 * a real page at its first write, without a message and past the limit. Later there are no new
 * ones, because a hole is filled with real zeros. A page that is written between the scan and the
 * protection raises a fault for nothing.
 *
 * -EAGAIN: an event is unread, and waiting for its reader with map_lock held would be for ever.
 */
static int protect_zeros(struct usw_target *target, uint64_t start, uint64_t end)
{
	struct page_region regions[USW_ZERO_REGIONS];

	while (start < end) {
		uint64_t walk_end = end;
		int count = usw_maps_zeros(target->pagemap_fd, start, end, regions,
					   USW_ZERO_REGIONS, &walk_end);

		for (int i = 0; i < count; i++)
			if (usw_uffd_protect(target->uffd, regions[i].start,
					     regions[i].end - regions[i].start) == -EAGAIN)
				return -EAGAIN;
		if (count < 0 || walk_end <= start)
			return 0; // gone: its unmapping raises an event
		start = walk_end;
	}
	return 0;
}

/** Put what the list of registered ranges does not have of [start, end) on it. */
static int add_registered(struct usw_target *target, uint64_t start, uint64_t end)
{
	while (start < end) {
		uint32_t i = usw_ranges_find(&target->registered, start);
		struct usw_range *next = i < target->registered.count ? &target->registered.at[i]
								      : NULL;

		if (next && next->start <= start) {
			start = next->end;
			continue;
		}
		uint64_t gap_end = next ? usw_min(next->start, end) : end;
		// Words here are left over from memory that went without an event: a range that a
		// fork did not inherit.
		usw_target_forget(target, start, gap_end);
		int ret = protect_zeros(target, start, gap_end);

		if (ret)
			return ret;
		if (!usw_ranges_add(&target->registered, start, gap_end))
			return -ENOMEM;
		start = gap_end;
	}
	return 0;
}

struct seen_mapping {
	struct usw_range range;
	enum usw_maps_kind kind;
};

static int visit_one(void *context, uint64_t start, uint64_t end, enum usw_maps_kind kind)
{
	*(struct seen_mapping *)context =
		(struct seen_mapping){.range = {start, end}, .kind = kind};
	return 1;
}

/**
 * Whether the kernel confirms that what is mapped at `start` now is private anonymous memory and
 * registered; clips *end to it. Eviction from what is not would leave a hole that nobody is asked
 * to fill.
 *
 * A mapping that was not registered when it was read and is registered when asked about would be
 * believed in without reason: parts of it may be gone, and what comes in their place is not
 * registered. It can only be if somebody registered in between, which is looked for here, or if
 * registered memory was moved (or, on both of its ends, grown) into its place: see is_reshaped().
 */
static bool is_registered(struct usw_target *target, uint64_t start, uint64_t *end)
{
	uint32_t registrations = atomic_load(&target->registrations);
	struct seen_mapping seen = {0};

	if (atomic_load(&target->registering) ||
	    usw_maps_for_each(target->maps_fd, start, visit_one, &seen) != 1 ||
	    seen.range.start > start ||
	    (seen.kind != USW_MAPS_ELIGIBLE && seen.kind != USW_MAPS_RESERVE))
		return false;
	*end = usw_min(*end, seen.range.end);
	return usw_uffd_probe(target->uffd, start) == USW_UFFD_ANONYMOUS &&
	       usw_uffd_probe(target->uffd, *end - USW_PAGE_BYTES) == USW_UFFD_ANONYMOUS &&
	       atomic_load(&target->registrations) == registrations;
}

struct adoption {
	struct usw_target *target;
	struct usw_range within;
	struct usw_ranges found;
	int result;
};

static int visit_adopt(void *context, uint64_t start, uint64_t end, enum usw_maps_kind kind)
{
	struct adoption *adoption = context;
	struct usw_target *target = adoption->target;

	if (start >= adoption->within.end)
		return 1;
	start = usw_max(start, adoption->within.start);
	end = usw_min(end, adoption->within.end);
	if (kind == USW_MAPS_FOREIGN) {
		// Shared memory that came after the look, and was registered with the rest.
		if (usw_uffd_probe(target->uffd, start) == USW_UFFD_SHARED)
			usw_uffd_unregister(target->uffd, start, end - start);
		adoption->result = -EINVAL;
	} else if (kind != USW_MAPS_OTHER) {
		uint64_t registered_end = end;

		if (!is_registered(target, start, &registered_end))
			adoption->result = -EAGAIN;
		else if (!usw_ranges_append(&adoption->found, start, registered_end))
			return -ENOMEM;
		else if (registered_end < end) // cut short since it was read: look again
			adoption->result = -EAGAIN;
	}
	return 0;
}

/**
 * Whether memory was moved, or a child has got a copy of it, since the generation was taken. The
 * kernel answers no probe between such a change and the moment in which its event is read; who was
 * in the middle of reading announces it before `reading` is even.
 */
static bool is_reshaped(struct usw_target *target, uint32_t generation)
{
	usw_wait_while_odd(&target->reading);
	return atomic_load(&target->generation) != generation;
}

/**
 * The second registration says that what was found is registered with us: a program that has a
 * userfaultfd of its own may have mapped and registered something between the first and the look.
 *
 * A child inherits the list of registered ranges when its event is applied, but what is registered
 * was settled when it was made: nothing may come on the list in between.
 */
int usw_target_register(struct usw_target *target, uint64_t start, uint64_t end)
{
	struct adoption adoption = {.target = target, .within = {start, end}};
	uint32_t generation = atomic_load(&target->generation);

	// An event that was read before we looked at the generation waits for map_lock, or is
	// applied.
	if (atomic_load(&target->events_pending))
		return -EAGAIN;
	struct usw_range whole = usw_maps_whole(target->maps_fd, adoption.within);
	if (whole.start >= whole.end)
		return -EINVAL;
	int ret = usw_uffd_register(target->uffd, whole.start, whole.end - whole.start);

	if (!ret)
		ret = usw_maps_for_each(target->maps_fd, start, visit_adopt, &adoption);
	if (ret >= 0)
		ret = usw_uffd_register(target->uffd, whole.start, whole.end - whole.start);
	if (!ret && is_reshaped(target, generation))
		ret = -EAGAIN;
	for (uint32_t i = 0; !ret && i < adoption.found.count; i++)
		ret = add_registered(target, adoption.found.at[i].start, adoption.found.at[i].end);
	usw_ranges_free(&adoption.found);
	return ret ? ret : adoption.result;
}

struct inheritance {
	struct usw_target *child;
	uint64_t settled_end; /* up to here the list says what is so */
};

/** Nothing in [start, end) is registered. False: no memory. */
static bool disown(struct usw_target *target, uint64_t start, uint64_t end)
{
	if (start >= end)
		return true;
	usw_target_forget(target, start, end);
	return usw_ranges_remove(&target->registered, start, end);
}

static int visit_inherited(void *context, uint64_t start, uint64_t end, enum usw_maps_kind kind)
{
	struct inheritance *inheritance = context;
	struct usw_target *child = inheritance->child;
	uint32_t i = usw_ranges_find(&child->registered, start);

	(void)kind; // what was registered once may have any protection by now
	if (i == child->registered.count || child->registered.at[i].start >= end)
		return 0;
	enum usw_uffd_kind found = usw_uffd_probe(child->uffd, start);
	if (found == USW_UFFD_UNKNOWN)
		return -EAGAIN;
	if (found == USW_UFFD_NONE)
		return 0;
	if (!disown(child, inheritance->settled_end, start))
		return -ENOMEM;
	inheritance->settled_end = end;
	return 0;
}

void usw_target_check_inherited(struct usw_target *child)
{
	struct inheritance inheritance = {.child = child};

	if (usw_maps_for_each(child->maps_fd, 0, visit_inherited, &inheritance) ||
	    !disown(child, inheritance.settled_end, USW_ADDRESS_END))
		atomic_store(&child->broken, true);
}

struct covering {
	uint64_t page;
	struct usw_range range; /* the mapping with that page */
};

static int visit_covering(void *context, uint64_t start, uint64_t end, enum usw_maps_kind kind)
{
	struct covering *covering = context;

	(void)kind;
	if (end <= covering->page)
		return 0;
	if (start <= covering->page)
		covering->range = (struct usw_range){start, end};
	return 1;
}

bool usw_target_owns(struct usw_target *target, uint64_t page)
{
	struct covering covering = {.page = page};

	// An event that is unread makes the kernel refuse the move as well.
	if (usw_uffd_probe(target->uffd, page) != USW_UFFD_NONE)
		return true;
	// In this order: a registration in between makes the answer another one.
	if (usw_maps_for_each(target->maps_fd, 0, visit_covering, &covering) == 1 &&
	    usw_uffd_probe(target->uffd, page) == USW_UFFD_NONE &&
	    !disown(target, covering.range.start, covering.range.end))
		atomic_store(&target->broken, true);
	return false;
}

/** The mapping with a page. Of a child without hands, which has told nobody of any, the page alone. */
static struct usw_range mapping_of(const struct usw_target *target, uint64_t page)
{
	struct covering covering = {.page = page, .range = {page, page + USW_PAGE_BYTES}};

	if (target->maps_fd >= 0)
		usw_maps_for_each(target->maps_fd, 0, visit_covering, &covering);
	return covering.range;
}

bool usw_target_has_out(const struct usw_target *target, uint64_t start, uint64_t end)
{
	usw_page_word *word;

	for (uint64_t address = start; (word = usw_pagemap_next(&target->pagemap, &address, end));
	     address += USW_PAGE_BYTES) {
		enum usw_page_state state = usw_page_state(atomic_load(word));

		if (state == USW_PAGE_EVICTED || state == USW_PAGE_EVICTING)
			return true;
	}
	return false;
}

/** Unregister a range of which no page has left: that would read as zeros. 0, or -errno. */
static int let_go(struct usw_target *target, const struct usw_range *range)
{
	if (usw_target_has_out(target, range->start, range->end))
		return -EBUSY;
	return usw_uffd_unregister(target->uffd, range->start, range->end - range->start);
}

bool usw_target_let_go(struct usw_target *target, uint64_t page)
{
	struct usw_range mapping = mapping_of(target, page);
	int ret = let_go(target, &mapping);

	// The one page of a child without hands may be a huge one. Those have one of two sizes.
	for (uint64_t bytes = USW_HUGE_BYTES; ret == -EINVAL && bytes <= USW_GIANT_BYTES;
	     bytes *= USW_GIANT_BYTES / USW_HUGE_BYTES) {
		uint64_t start = page & ~(bytes - 1);

		ret = let_go(target, &(struct usw_range){start, start + bytes});
	}
	return ret == 0;
}

bool usw_target_leave_rest(struct usw_target *target, uint64_t page)
{
	struct usw_range rest = {page, mapping_of(target, page).end};

	pthread_mutex_lock(&target->map_lock);
	int ret = let_go(target, &rest);
	if (!ret && !disown(target, rest.start, rest.end))
		atomic_store(&target->broken, true);
	pthread_mutex_unlock(&target->map_lock);
	return ret == 0;
}

uint32_t usw_target_thread(const struct usw_target *target, const struct usw_fault *fault)
{
	return target->is_below ? usw_task_number(target->pid, fault->thread_id) : fault->thread_id;
}

bool usw_target_is_running(const struct usw_target *target)
{
	struct pollfd exited = {.fd = target->pidfd, .events = POLLIN};

	return target->pidfd < 0 || poll(&exited, 1, 0) == 0;
}

/** What statm says, in pages. False: nothing, or that its thread has no memory any more. */
static bool read_statm(const struct usw_target *target, uint64_t *ret_anonymous, uint64_t *ret_data)
{
	char text[128];
	unsigned long long size, resident, shared, code, library, data;
	ssize_t got = pread(target->statm_fd, text, sizeof(text) - 1, 0);

	text[got > 0 ? got : 0] = '\0';
	if (sscanf(text, "%llu %llu %llu %llu %llu %llu", &size, &resident, &shared, &code,
		   &library, &data) != 6 ||
	    !size)
		return false;
	*ret_anonymous = resident > shared ? resident - shared : 0;
	*ret_data = data;
	return true;
}

/** Ask another thread from now on. False: there is none, or it is another program's by now. */
static bool change_statm(struct usw_target *target)
{
	_cleanup_close_ int fd = usw_task_open(target->pid, "statm");

	if (fd < 0 || !usw_target_is_running(target))
		return false;
	close(target->statm_fd);
	target->statm_fd = fd;
	fd = -1;
	return true;
}

bool usw_target_measure(struct usw_target *target)
{
	uint64_t anonymous, data;

	if (!atomic_load(&target->has_hands))
		return true;
	if (!read_statm(target, &anonymous, &data) &&
	    !(change_statm(target) && read_statm(target, &anonymous, &data)))
		return false;
	target->anon_pages = anonymous;
	atomic_store(&target->data_pages, data);
	return true;
}

void usw_target_wipe(struct usw_target *child)
{
	if (!atomic_load(&child->may_be_wiped))
		return;
	for (uint32_t i = 0; i < child->maybe_wiped.count; i++)
		usw_target_forget(child, child->maybe_wiped.at[i].start,
				  child->maybe_wiped.at[i].end);
	atomic_store(&child->may_be_wiped, false);
}

void usw_target_poison_all(struct usw_target *target)
{
	uint64_t address = 0;
	usw_page_word *word;

	while ((word = usw_pagemap_next(&target->pagemap, &address, USW_ADDRESS_END))) {
		enum usw_page_state state = usw_page_state(atomic_load(word));

		if ((state == USW_PAGE_EVICTED || state == USW_PAGE_EVICTING) &&
		    usw_uffd_poison(target->uffd, address, USW_PAGE_BYTES) == -ESRCH)
			return;
		address += USW_PAGE_BYTES;
	}
}

void usw_target_kill(struct usw_target *target, const char *why)
{
	// A process that is another user's by now may be out of our reach, and so is a forked child
	// that has not handed itself in.
	bool is_killed = target->pidfd >= 0 &&
			 syscall(SYS_pidfd_send_signal, target->pidfd, SIGKILL, NULL, 0) == 0;

	if (!is_killed && target->pidfd >= 0 && errno == ESRCH)
		return; // it has ended by itself
	if (!atomic_exchange(&target->kill_reported, true))
		usw_session_report(target->session,
				   is_killed ? USW_EVENT_TARGET_KILLED : USW_EVENT_NOT_KILLED,
				   target->id, target->pid, "%s", why);
}

static void ask(struct usw_fault_thread *thread)
{
	atomic_store(&thread->is_asked, true);
	usw_fault_kick_one(thread);
}

void usw_target_ask_retire(struct usw_target *target)
{
	atomic_store(&target->retire_asked, true);
	ask(target->thread);
}

void usw_target_ask_page(struct usw_target *target, uint64_t page)
{
	atomic_store(&target->page_asked, page);
	ask(target->thread);
}

void usw_target_ask_forget(struct usw_target *target, uint64_t page)
{
	uint64_t none = 0;

	// One at a time: the sweep comes by again.
	if (atomic_compare_exchange_strong(&target->guard_asked, &none, page))
		ask(target->thread);
}

bool usw_target_has_left(struct usw_target *target)
{
	if (!target->hands_pid) {
		int sender = usw_ring_sender(target);

		if (sender > 0) {
			target->hands_pid = (uint32_t)sender;
			usw_priority_hurry(sender);
		}
	}
	// An error (no permission, no such process) is "do not know": the pidfd tells of an exit.
	if (!target->hands_pid ||
	    syscall(SYS_kcmp, target->pid, target->hands_pid, KCMP_VM, 0, 0) <= 0)
		return false;
	// Nor has a process left whose first thread has ended, or whose hands was killed, in whose
	// place there may be another task by now. Hands lets go of its connection after its memory.
	return usw_task_has_memory(target->pid) && usw_task_has_memory((int)target->hands_pid) &&
	       !usw_ring_is_cut(target);
}
