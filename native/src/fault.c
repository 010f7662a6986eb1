// SPDX-License-Identifier: MIT

/**
 * @file
 * Reading messages, and the life of a fault thread. See fault.h.
 */

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include "answer.h"
#include "control.h"
#include "diskanswer.h"
#include "event.h"
#include "fault.h"
#include "follow.h"
#include "guard.h"
#include "priority.h"
#include "ring.h"
#include "uffd.h"

#define USW_MESSAGES_MAX 16
/* A target is listened to so often before others have their turn. */
#define USW_PUMP_ROUNDS 32
/* What a fault thread's buffers take: one page, zeros, a window. */
#define USW_BUFFERS_BYTES \
	((uint64_t)(1 + USW_HOLE_PAGES_MAX + USW_STREAM_WINDOW_MAX) * USW_PAGE_BYTES)
#define USW_EPOLL_EVENTS 16
/* A waiting fault is looked at again after this long even if nobody kicks. */
#define USW_DEFERRED_POLL_MS 1
/* Between two tries to read the event of a fork for which there was no descriptor. */
#define USW_DESCRIPTOR_PAUSE_US 500u

// --- Waiting faults -----------------------------------------------------------------------------

/** Have a target looked at in a millisecond. */
static void visit_again(struct usw_fault_thread *thread, struct usw_target *target)
{
	if (target->on_deferred_list)
		return;
	target->on_deferred_list = true;
	target->next_deferred = thread->deferred_list;
	thread->deferred_list = target;
}

/** Put a fault aside that cannot be answered now. */
static void defer(struct usw_fault_thread *thread, struct usw_target *target,
		  const struct usw_fault *fault)
{
	uint32_t waiting = atomic_load_explicit(&target->deferred_waiting, memory_order_relaxed);

	usw_count(&thread->counters, faults_deferred, 1);
	if (waiting == USW_DEFERRED_MAX) {
		// Make it fault again: the kernel's queue has room for all of them.
		usw_count(&thread->counters, faults_overflow, 1);
		usw_uffd_wake(target->uffd, fault->page, USW_PAGE_BYTES);
		return;
	}
	target->deferred[waiting] = *fault;
	target->deferred[waiting].is_again = true;
	atomic_store(&target->deferred_waiting, waiting + 1);
	atomic_fetch_add(&thread->deferred_count, 1);
	visit_again(thread, target);
}

void usw_fault_finish(struct usw_fault_thread *thread, const struct usw_fault *fault,
		      enum usw_verdict verdict)
{
	if (verdict != USW_ANSWERED)
		return;
	usw_count(&thread->counters, faults_total, 1);
	usw_histogram_record(&thread->latency, usw_now_ns() - fault->since_ns);
}

enum usw_verdict usw_fault_answer(struct usw_fault_thread *thread, struct usw_target *target,
				  const struct usw_fault *fault)
{
	enum usw_verdict verdict = usw_answer(thread, target, fault);

	if (verdict == USW_DEFER)
		defer(thread, target, fault);
	else
		usw_fault_finish(thread, fault, verdict);
	return verdict;
}

/** Try a target's waiting faults again. */
static void retry_target(struct usw_fault_thread *thread, struct usw_target *target)
{
	uint32_t waiting = atomic_load_explicit(&target->deferred_waiting, memory_order_relaxed);
	uint32_t left = 0;

	for (uint32_t i = 0; i < waiting; i++) {
		const struct usw_fault *fault = &target->deferred[i];
		enum usw_verdict verdict = usw_answer(thread, target, fault);

		if (verdict == USW_DEFER)
			target->deferred[left++] = *fault;
		else
			usw_fault_finish(thread, fault, verdict);
	}
	atomic_store(&target->deferred_waiting, left);
	atomic_fetch_sub(&thread->deferred_count, waiting - left);
}

/** Try again all that waits: first read what its targets have to say. */
static void retry_deferred(struct usw_fault_thread *thread)
{
	struct usw_target **link = &thread->deferred_list;

	while (*link) {
		struct usw_target *target = *link;

		usw_fault_pump(thread, target);
		retry_target(thread, target);
		if (atomic_load_explicit(&target->deferred_waiting, memory_order_relaxed) == 0 &&
		    !target->told_count) {
			target->on_deferred_list = false;
			*link = target->next_deferred;
		} else {
			link = &target->next_deferred;
		}
	}
}

// --- Messages -----------------------------------------------------------------------------------

/**
 * A fork brings a descriptor with its event. If there is none to be had the event stays unread and
 * the program waits in fork(2), until another process ends: then the user should know why, and this
 * thread should not ask all the time.
 */
static void wait_for_descriptor(struct usw_session *session, int error)
{
	if (!atomic_exchange(&session->fork_waits_told, true))
		usw_session_report(session, USW_EVENT_WARNING, 0, 0,
				   "a program waits in fork, because the agent cannot open its "
				   "userfaultfd (%s); allow more open files (`ulimit -Hn`)",
				   strerror(error));
	usleep(USW_DESCRIPTOR_PAUSE_US);
}

/** Read messages inside the gate; events among them are announced before it opens again. */
static int read_messages(struct usw_target *target, struct uffd_msg *messages, bool *ret_events)
{
	if (!usw_gate_enter(target))
		return 0;

	// The kernel lets pages and registrations move again while we read.
	atomic_fetch_add(&target->reading, 1);
	ssize_t got = usw_uffd_read(target->uffd, messages, USW_MESSAGES_MAX * sizeof(*messages));
	int error = got < 0 ? (int)-got : 0;
	int count = got > 0 ? (int)((size_t)got / sizeof(*messages)) : 0;
	bool reshaped = false;
	*ret_events = false;
	for (int i = 0; i < count; i++) {
		*ret_events |= messages[i].event != UFFD_EVENT_PAGEFAULT;
		reshaped |= messages[i].event == UFFD_EVENT_REMAP ||
			    messages[i].event == UFFD_EVENT_FORK;
	}
	if (*ret_events) {
		// In this order: see usw_target_register().
		atomic_store(&target->events_pending, true);
		if (reshaped)
			atomic_fetch_add(&target->generation, 1);
		uint32_t epoch = atomic_fetch_add(&target->epoch, 1) + 1;
		if (target->ring)
			__atomic_store_n(&target->ring->epoch, epoch, __ATOMIC_SEQ_CST);
	}
	atomic_fetch_add(&target->reading, 1);
	usw_gate_leave(target);
	if (usw_unlikely(error == EMFILE || error == ENFILE || error == ENOMEM))
		wait_for_descriptor(target->session, error);
	return count;
}

/** Start all that faults have asked disks for, with one call. */
static void start_reads(struct usw_fault_thread *thread)
{
	if (thread->disk)
		usw_diskfault_flush(thread->disk);
}

/** Read and settle what one target has to say, once. True: a fault was answered. */
static bool pump_once(struct usw_fault_thread *thread, struct usw_target *target)
{
	struct uffd_msg messages[USW_MESSAGES_MAX];
	bool events = false;
	bool answered = false;

	usw_event_settle(target);
	int count = read_messages(target, messages, &events);

	if (count == 0)
		return false;
	uint64_t now_ns = usw_now_ns();
	if (events)
		usw_event_apply(target, messages, count);
	if (target->told_count)
		visit_again(thread, target);
	for (int i = 0; i < count; i++) {
		if (messages[i].event != UFFD_EVENT_PAGEFAULT)
			continue;
		struct usw_fault fault = {
			.page = usw_page_floor(messages[i].arg.pagefault.address),
			.since_ns = now_ns,
			.flags = (uint32_t)messages[i].arg.pagefault.flags,
			.thread_id = messages[i].arg.pagefault.feat.ptid,
		};
		enum usw_verdict verdict = usw_fault_answer(thread, target, &fault);

		answered |= verdict == USW_ANSWERED;
		usw_follow(thread, target, &fault);
	}
	start_reads(thread);
	usw_watch_kick(thread->session);
	if (atomic_load_explicit(&target->deferred_waiting, memory_order_relaxed) ||
	    usw_session_room(thread->session) <
		    atomic_load_explicit(&thread->session->low_pages, memory_order_relaxed))
		usw_reclaim_kick(thread->session);
	return answered;
}

void usw_fault_pump(struct usw_fault_thread *thread, struct usw_target *target)
{
	for (int i = 0; i < USW_PUMP_ROUNDS && pump_once(thread, target); i++)
		if (thread->deferred_list || (thread->disk && thread->disk->busy))
			return;
}

// --- Beginning and end of a target --------------------------------------------------------------

int usw_fault_serve(struct usw_fault_thread *thread, struct usw_target *target)
{
	struct epoll_event event = {
		.events = EPOLLIN,
		.data.u64 = (uintptr_t)target | USW_SOURCE_UFFD,
	};

	target->thread = thread;
	if (epoll_ctl(thread->epoll_fd, EPOLL_CTL_ADD, target->uffd, &event) < 0)
		return -errno;
	return target->pidfd >= 0 ? usw_fault_watch_exit(target) : 0;
}

void usw_fault_await(struct usw_target *parent, struct usw_target *child)
{
	struct epoll_event event = {
		.events = EPOLLIN,
		.data.u64 = (uintptr_t)parent | USW_SOURCE_UFFD,
	};

	// Without it the child is found a little later.
	epoll_ctl(parent->thread->epoll_fd, EPOLL_CTL_ADD, child->uffd, &event);
}

void usw_fault_turn_away(struct usw_target *parent, struct usw_target *child)
{
	epoll_ctl(parent->thread->epoll_fd, EPOLL_CTL_DEL, child->uffd, NULL);
}

int usw_fault_watch_exit(struct usw_target *target)
{
	struct epoll_event event = {
		.events = EPOLLIN,
		.data.u64 = (uintptr_t)target | USW_SOURCE_PIDFD,
	};

	return epoll_ctl(target->thread->epoll_fd, EPOLL_CTL_ADD, target->pidfd, &event) < 0
		       ? -errno
		       : 0;
}

/** Let go of a target whose process is gone or has left this address space. */
static void retire(struct usw_fault_thread *thread, struct usw_target *target)
{
	if (atomic_load(&target->state) != USW_TARGET_LIVE)
		return;
	if (target->on_deferred_list) {
		struct usw_target **link = &thread->deferred_list;

		while (*link != target)
			link = &(*link)->next_deferred;
		*link = target->next_deferred;
		target->on_deferred_list = false;
		atomic_fetch_sub(&thread->deferred_count, atomic_load(&target->deferred_waiting));
		atomic_store(&target->deferred_waiting, 0);
	}

	if (thread->disk)
		usw_diskfault_forget(thread->disk, target);
	usw_event_conclude(target);

	// The lock keeps a late handshake from adding a pidfd behind our back. The descriptors must
	// leave the epoll set by name: others hold duplicates, so closing ours would not do it.
	pthread_mutex_lock(&target->map_lock);
	epoll_ctl(thread->epoll_fd, EPOLL_CTL_DEL, target->uffd, NULL);
	if (target->pidfd >= 0)
		epoll_ctl(thread->epoll_fd, EPOLL_CTL_DEL, target->pidfd, NULL);
	atomic_store(&target->state, USW_TARGET_RETIRED); // first: see run_command() in evict.c
	usw_ring_quit(target);
	pthread_mutex_unlock(&target->map_lock); // the reclaim thread may free it from here on
	usw_reclaim_kick(thread->session);
}

/** A target of this thread of which somebody else wants something that only this thread can do. */
static struct usw_target *find_asked(struct usw_fault_thread *thread)
{
	struct usw_session *session = thread->session;
	struct usw_target *target;

	pthread_mutex_lock(&session->targets_lock);
	for (target = session->targets; target; target = target->next)
		if (target->thread == thread && atomic_load(&target->state) == USW_TARGET_LIVE &&
		    (atomic_load(&target->retire_asked) || atomic_load(&target->page_asked) ||
		     atomic_load(&target->guard_asked)))
			break;
	pthread_mutex_unlock(&session->targets_lock);
	return target;
}

/**
 * Retire, or forget what guards replace, or bring a page in; what cannot be done now is asked for
 * again.
 */
static void do_asked(struct usw_fault_thread *thread)
{
	struct usw_target *target;

	if (!atomic_exchange(&thread->is_asked, false))
		return;
	while ((target = find_asked(thread))) {
		if (atomic_load(&target->retire_asked)) {
			retire(thread, target);
			continue;
		}
		uint64_t guard = atomic_exchange(&target->guard_asked, 0);
		uint64_t page = atomic_load(&target->page_asked);

		if (guard)
			usw_guards_forget(target, guard);
		if (!page)
			continue;
		uint64_t now;
		usw_answer_unasked(thread, target, page);
		atomic_store(&target->page_asked, 0);
		// It may want another. One on its way from a disk would be asked for again until it is here.
		if (!usw_answer_find_evicted(target, page, &now))
			usw_reclaim_kick(thread->session);
	}
}

// --- The thread ---------------------------------------------------------------------------------

int usw_fault_thread_init(struct usw_fault_thread *thread, struct usw_session *session)
{
	struct epoll_event event = {.events = EPOLLIN, .data.u64 = 0};

	*thread = (struct usw_fault_thread){
		.session = session, .epoll_fd = -1, .kick_fd = -1, .processor = -1};
	void *buffers = mmap(NULL, USW_BUFFERS_BYTES, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (buffers == MAP_FAILED)
		return -errno;
	thread->page = buffers;
	thread->zeros = thread->page + USW_PAGE_BYTES;
	thread->window = thread->zeros + USW_HOLE_PAGES_MAX * USW_PAGE_BYTES;
	thread->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	thread->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (thread->epoll_fd < 0 || thread->kick_fd < 0 ||
	    epoll_ctl(thread->epoll_fd, EPOLL_CTL_ADD, thread->kick_fd, &event) < 0)
		return -errno;
	return 0;
}

void usw_fault_thread_deinit(struct usw_fault_thread *thread)
{
	usw_diskfault_destroy(thread->disk);
	thread->disk = NULL;
	if (thread->page)
		munmap(thread->page, USW_BUFFERS_BYTES);
	usw_cleanup_close(&thread->epoll_fd);
	usw_cleanup_close(&thread->kick_fd);
	thread->page = NULL;
	thread->epoll_fd = thread->kick_fd = -1;
}

void usw_fault_kick_one(const struct usw_fault_thread *thread)
{
	uint64_t one = 1;

	if (write(thread->kick_fd, &one, sizeof(one)) < 0)
		return; // EAGAIN: the counter is full of kicks nobody has read yet
}

void usw_fault_kick(struct usw_session *session)
{
	for (uint32_t i = 0; i < session->thread_count; i++)
		if (atomic_load(&session->threads[i].deferred_count))
			usw_fault_kick_one(&session->threads[i]);
}

/** A program has made its descriptor block, or that of a child that waits, which inherits it. */
static void unblock(struct usw_target *target)
{
	usw_uffd_unblock(target->uffd);
	for (uint32_t i = 0; i < target->told_count; i++)
		if (target->told[i].child)
			usw_uffd_unblock(target->told[i].child->uffd);
}

/** Wait for anything at all, then settle it. */
static void wait_and_settle(struct usw_fault_thread *thread, int timeout_ms)
{
	struct epoll_event events[USW_EPOLL_EVENTS];
	int count = epoll_wait(thread->epoll_fd, events, USW_EPOLL_EVENTS, timeout_ms);
	bool kicked = false;

	for (int i = 0; i < count; i++) {
		struct usw_target *target =
			(struct usw_target *)(uintptr_t)(events[i].data.u64 & ~(uint64_t)7);
		uint64_t kicks;

		if (events[i].data.u64 == USW_SOURCE_DISK) {
			// usw_diskanswer_settle() looks at all of them; an announcement that comes
			// after what it announces is taken back here, or it would be heard for ever
			if (!thread->disk->busy)
				usw_diskfault_collect(thread->disk);
		} else if (!target) {
			kicked = read(thread->kick_fd, &kicks, sizeof(kicks)) > 0;
		} else if ((events[i].data.u64 & 7) == USW_SOURCE_UFFD) {
			if (usw_unlikely(events[i].events & EPOLLERR))
				unblock(target);
			usw_fault_pump(thread, target);
		}
	}
	// Ends last: a target that is retired may have been named above, and may be freed at once.
	for (int i = 0; i < count; i++)
		if ((events[i].data.u64 & 7) == USW_SOURCE_PIDFD)
			retire(thread,
			       (struct usw_target *)(uintptr_t)(events[i].data.u64 & ~(uint64_t)7));
	if (kicked)
		do_asked(thread);
}

/** At the end of the session: every child is known by then, and is not left without content. */
static void conclude_all(struct usw_fault_thread *thread)
{
	struct usw_target *target = NULL;

	while ((target = usw_session_walk(thread->session, target)))
		if (target->thread == thread)
			usw_event_conclude(target);
}

void *usw_fault_main(void *argument)
{
	struct usw_fault_thread *thread = argument;

	bool waiting = false;

	usw_priority_hurry(0);
	while (!atomic_load_explicit(&thread->session->stopping, memory_order_relaxed)) {
		int timeout_ms = usw_control_restore(thread);

		if (thread->disk && thread->disk->is_ripe)
			timeout_ms = 0;
		else if (timeout_ms < 0 && (thread->deferred_list || waiting))
			timeout_ms = USW_DEFERRED_POLL_MS;
		wait_and_settle(thread, timeout_ms);
		waiting = usw_diskanswer_settle(thread);
		if (thread->deferred_list)
			retry_deferred(thread);
		start_reads(thread);
	}
	conclude_all(thread);
	return NULL;
}
