// SPDX-License-Identifier: MIT

/**
 * @file
 * What a fault is answered with. See answer.h.
 */

#include <errno.h>
#include <string.h>
#include <sys/syscall.h>

#include "answer.h"
#include "content.h"
#include "diskanswer.h"
#include "guard.h"
#include "park.h"
#include "prefetch.h"
#include "session.h"
#include "task.h"
#include "uffd.h"

/*
 * An event that has been announced for so long, and not raised, waits for what is behind it. One
 * that is raised is read before a fault is tried again.
 */
#define USW_UNRAISED_NS 20000000u
/* Zero pages that are let go at once when they are written one after the other. */
#define USW_WRITE_PAGES_MAX 16u
/* Where copies do not pay one of so many is kept all the same, to see whether it would. */
#define USW_COPY_PROBE 16u

// --- Parts of an answer -------------------------------------------------------------------------

enum usw_verdict usw_answer_failed(struct usw_fault_thread *thread, struct usw_target *target,
				   uint64_t page, int error)
{
	switch (error) {
	case -EEXIST: // somebody was first; whoever waits only has to be told
		usw_count(&thread->counters, faults_present, 1);
		usw_uffd_wake(target->uffd, page, USW_PAGE_BYTES);
		return USW_ANSWERED;
	case -ENOENT: // the mapping is gone or is not ours any more; let the thread find out
	case -EINVAL:
		usw_uffd_wake(target->uffd, page, USW_PAGE_BYTES);
		return USW_DROPPED;
	case -ESRCH: // the address space is gone
		return USW_DROPPED;
	case -EAGAIN: // an event is unread: it will be read before this fault is tried again
	case -ENOMEM: // the machine is out of memory for the moment
	default:
		return USW_DEFER;
	}
}

enum usw_verdict usw_answer_poison(struct usw_fault_thread *thread, struct usw_target *target,
				   uint64_t page, usw_page_word *word, uint64_t now,
				   const char *where, const char *why)
{
	int ret = usw_uffd_poison(target->uffd, page, USW_PAGE_BYTES);

	if (ret && ret != -EEXIST && ret != -EOPNOTSUPP)
		return usw_answer_failed(thread, target, page, ret);
	if (usw_page_state(now) == USW_PAGE_EVICTED) {
		usw_page_transition(word, now, usw_page_make(USW_PAGE_POISONED, 0, 0, 0));
		usw_vswap_note_damaged(&thread->session->vswap, usw_page_id(now));
		usw_vswap_put(&thread->session->vswap, usw_page_id(now));
		usw_count(&thread->counters, poisoned_pages, 1);
		usw_session_report(thread->session, USW_EVENT_POISONED, target->id, target->pid,
				   "page %#llx: its content in the %s was damaged (%s); "
				   "the program gets SIGBUS when it touches the page",
				   (unsigned long long)page, where, why);
	}
	if (ret == -EOPNOTSUPP)
		usw_target_kill(target, "a damaged page cannot be poisoned on this kernel");
	else if (ret) // something is there already: whoever waits only has to be told
		usw_uffd_wake(target->uffd, page, USW_PAGE_BYTES);
	return USW_ANSWERED;
}

static void count_source(struct usw_fault_thread *thread, enum usw_backend backend)
{
	switch (backend) {
	case USW_BACKEND_ZERO:
		usw_count(&thread->counters, faults_zero, 1);
		break;
	case USW_BACKEND_SAME:
		usw_count(&thread->counters, faults_same, 1);
		break;
	case USW_BACKEND_MEMORY:
		usw_count(&thread->counters, faults_standby, 1);
		break;
	case USW_BACKEND_OBJECT:
		usw_count(&thread->counters, faults_ram, 1);
		break;
	case USW_BACKEND_FREE:
		break;
	}
}

void usw_answer_count_touch(struct usw_fault_thread *thread, struct usw_target *target,
			    uint64_t now, bool on_disk)
{
	const struct usw_session *session = thread->session;
	uint32_t distance = usw_page_age(now, usw_session_stamp(session));

	usw_count(target, faults, 1);
	if (!on_disk && distance < usw_session_near_stamps(session))
		usw_count(thread, near_faults, 1);
	if (distance <= usw_session_limit_stamps(session))
		usw_count(target, refaults, 1);
}

bool usw_answer_is_hands(const struct usw_target *target, const struct usw_fault *fault)
{
	return target->ring && fault->thread_id &&
	       fault->thread_id == __atomic_load_n(&target->ring->hands_pid, __ATOMIC_RELAXED);
}

bool usw_answer_has_room(struct usw_fault_thread *thread, struct usw_target *target,
			 const struct usw_fault *fault)
{
	struct usw_session *session = thread->session;

	if (usw_session_room(session) > 0 ||
	    atomic_load_explicit(&session->let_pass, memory_order_relaxed))
		return true;
	return usw_answer_is_hands(target, fault);
}

usw_page_word *usw_answer_find_evicted(const struct usw_target *target, uint64_t page,
				       uint64_t *ret)
{
	usw_page_word *word = usw_pagemap_find(&target->pagemap, page);

	if (usw_unlikely(target->told_count || usw_target_may_be_wiped(target, page)))
		return NULL;
	*ret = word ? atomic_load_explicit(word, memory_order_acquire) : 0;
	return usw_page_state(*ret) == USW_PAGE_EVICTED ? word : NULL;
}

/**
 * Whether the copy of a page that has come in stays in RAM. Where that is tight, packed ones do: it
 * was much work to make them and they take little; and those of a walk, whose pages leave again
 * soon. But not that of a page that stays for long, with heat, or is about to change, nor if most
 * have changed of late: a write is not seen if the page was read first. (One on a disk takes no RAM,
 * and always stays.)
 */
static bool is_worth_keeping(const struct usw_session *session, uint32_t id,
			     enum usw_backend backend, struct usw_access access, uint32_t heat)
{
	// A page in standby is compressed only when it grows old there.
	if (backend == USW_BACKEND_MEMORY)
		return false;
	if (atomic_load_explicit(&session->keep_copies, memory_order_relaxed))
		return true;
	if (!atomic_load_explicit(&session->copies_pay, memory_order_relaxed) &&
	    atomic_load_explicit(&session->fault_clock, memory_order_relaxed) % USW_COPY_PROBE)
		return false;
	return !access.writes && !heat && (!access.touches || usw_content_is_packed(session, id));
}

struct usw_access usw_answer_access(const struct usw_fault *fault)
{
	return (struct usw_access){.touches = true,
				   .writes = fault->flags & UFFD_PAGEFAULT_FLAG_WRITE};
}

void usw_answer_settle(struct usw_fault_thread *thread, usw_page_word *word, uint64_t now,
		       enum usw_backend backend, bool on_disk, struct usw_access access)
{
	struct usw_session *session = thread->session;
	uint32_t stamp = usw_session_stamp(session);
	// What nobody has touched says nothing of itself; it is there for as long as it is young.
	uint32_t heat = access.touches ? usw_age_heat(now, stamp, usw_session_limit_stamps(session))
				       : usw_page_heat(now);
	bool keep = on_disk || is_worth_keeping(session, usw_page_id(now), backend, access, heat);
	uint64_t after = usw_page_make(USW_PAGE_RESIDENT, heat,
				       keep ? usw_page_id(now) : USW_VSWAP_NONE, stamp);

	usw_page_transition(word, now, access.touches ? usw_page_with_laps(after) : after);
	if (!keep)
		usw_vswap_put(&session->vswap, usw_page_id(now));
	usw_count(&thread->counters, verified_pages, 1);
}

int usw_answer_hand_in(struct usw_fault_thread *thread, struct usw_target *target, uint64_t page,
		       usw_page_word *word, uint64_t now, const void *content,
		       enum usw_backend backend, bool on_disk, struct usw_access access)
{
	struct usw_session *session = thread->session;
	uint64_t done;
	int ret = usw_uffd_copy(target->uffd, page, content, USW_PAGE_BYTES, &done);

	if (ret && ret != -EEXIST)
		return ret;

	atomic_fetch_add_explicit(&session->fault_clock, 1, memory_order_relaxed);
	if (ret) { // present already: what is there is newer than what we have
		usw_page_transition(word, now,
				    usw_page_make(USW_PAGE_RESIDENT, usw_page_heat(now), 0,
						  usw_session_stamp(session)));
		usw_vswap_put(&session->vswap, usw_page_id(now));
		return ret;
	}
	usw_answer_settle(thread, word, now, backend, on_disk, access);
	usw_session_charge(session, 1);
	return 0;
}

// --- What has left ------------------------------------------------------------------------------

/** What is going to be touched after this page comes in, too. */
static void look_ahead(struct usw_fault_thread *thread, struct usw_target *target,
		       const struct usw_fault *fault)
{
	if (usw_unlikely(!usw_guards_are_seen(target)))
		return;
	struct usw_forecast forecast =
		usw_streams_note(&target->streams, fault->thread_id, fault->page / USW_PAGE_BYTES);

	usw_count(&thread->counters, prefetch_proven, forecast.proven);
	if (forecast.window)
		usw_prefetch_stream(thread, target, fault, &forecast);
	else if (!fault->is_again)
		usw_prefetch_cluster(thread, target, fault);
}

/** The content of an evicted page comes back. */
static enum usw_verdict fault_in(struct usw_fault_thread *thread, struct usw_target *target,
				 const struct usw_fault *fault, usw_page_word *word, uint64_t now)
{
	struct usw_session *session = thread->session;
	struct usw_disk_place place;
	uint32_t id = usw_page_id(now);
	enum usw_backend backend;

	if (!usw_answer_has_room(thread, target, fault))
		return USW_DEFER;
	usw_content_prefetch(session, id);
	if (!usw_diskanswer_is_coming(thread, target, fault->page))
		look_ahead(thread, target, fault);
	int ret = usw_content_load(session, id, thread->page, &backend, &place);
	if (ret == -EREMOTE)
		return usw_diskanswer_begin(thread, target, fault, id, &place);
	if (ret)
		return usw_answer_poison(thread, target, fault->page, word, now,
					 backend == USW_BACKEND_MEMORY ? "standby" : "ram tier",
					 "hash mismatch");
	ret = usw_answer_hand_in(thread, target, fault->page, word, now, thread->page, backend,
				 false, usw_answer_access(fault));
	if (ret)
		return usw_answer_failed(thread, target, fault->page, ret);
	count_source(thread, backend);
	usw_answer_count_touch(thread, target, now, false);
	return USW_ANSWERED;
}

/**
 * Ask a disk for a page that is restored: its whole segment, or the page alone, which then comes in
 * by itself. -EAGAIN: too many are under way.
 */
static int ask_for(struct usw_fault_thread *thread, struct usw_target *target, uint64_t page,
		   uint32_t id, const struct usw_disk_place *place)
{
	if (usw_park_recall(target, page, place))
		return -EINPROGRESS;
	bool asked = usw_diskanswer_read_ahead(thread, target, page, id, place);

	if (thread->disk)
		usw_diskfault_flush(thread->disk);
	if (asked)
		return 1;
	return thread->disk && thread->disk->busy ? -EAGAIN : 0;
}

int usw_answer_unasked(struct usw_fault_thread *thread, struct usw_target *target, uint64_t page)
{
	struct usw_disk_place place;
	enum usw_backend backend;
	uint64_t now;
	uint64_t done;
	usw_page_word *word = usw_answer_find_evicted(target, page, &now);

	if (!word || !usw_guards_are_seen(target))
		return 0;
	int ret =
		usw_content_load(thread->session, usw_page_id(now), thread->page, &backend, &place);
	if (ret == -EREMOTE)
		return ask_for(thread, target, page, usw_page_id(now), &place);
	if (ret)
		return 0; // damaged: the fault that asks for it will say so
	if (!usw_guards_clip(target, page, 1))
		return 0;
	ret = usw_uffd_copy(target->uffd, page, thread->page, USW_PAGE_BYTES, &done);
	if (ret)
		return ret == -EAGAIN || ret == -ENOMEM ? -EAGAIN : 0;
	usw_answer_settle(thread, word, now, backend, false, (struct usw_access){0});
	usw_session_charge(thread->session, 1);
	return 1;
}

// --- What was never there -----------------------------------------------------------------------

/**
 * How many pages from `page` on nothing is known of; at least 1, which the caller knows already.
 */
static uint32_t hole_length(const struct usw_target *target, uint64_t page, uint32_t limit)
{
	uint32_t length = 1;

	while (length < limit) {
		usw_page_word *word = usw_pagemap_find(&target->pagemap,
						       page + (uint64_t)length * USW_PAGE_BYTES);

		if (word && atomic_load(word) != 0)
			break;
		length++;
	}
	return length;
}

/**
 * Zeros for a run of pages that never held anything, or of which the first went without an event
 * (`has_vanished`). Caller is in the filling section.
 */
static enum usw_verdict fill(struct usw_fault_thread *thread, struct usw_target *target,
			     uint64_t page, uint32_t length, bool has_vanished)
{
	uint64_t done;
	int ret = usw_uffd_copy(target->uffd, page, thread->zeros,
				(uint64_t)length * USW_PAGE_BYTES, &done);

	// The run may leave its mapping, which is refused whole: then the one page will do.
	if (ret && !done && length > 1)
		ret = usw_uffd_copy(target->uffd, page, thread->zeros, USW_PAGE_BYTES, &done);
	// The kernel fills no page here for us, or none so small, but by itself once the mapping is
	// not ours any more.
	if ((ret == -EFAULT || ret == -EINVAL) && !done && usw_target_let_go(target, page))
		ret = -ENOENT;
	if (!done)
		return usw_answer_failed(thread, target, page, ret);
	usw_session_charge(thread->session, (int64_t)(done / USW_PAGE_BYTES));
	usw_count(&thread->counters, faults_hole, 1);
	usw_count(&thread->counters, vanished_pages, has_vanished);
	usw_leaving_returned(&target->leaving, page, page + done);
	target->hole_next = page + done;
	return USW_ANSWERED;
}

/**
 * A hole that could not be filled. mremap(2) of locked memory has what it has grown by filled before
 * it says that it has moved it, and until it has said so the kernel neither answers faults nor moves
 * pages, so that no room is made either. Such a hole is left to the kernel: it cannot leave anyway.
 */
static enum usw_verdict leave_hole(struct usw_target *target, const struct usw_fault *fault)
{
	bool is_changing = usw_uffd_probe(target->uffd, fault->page) == USW_UFFD_UNKNOWN;

	// Threads that move memory all the time are as good a reason. A thread that waits in the call
	// for its event to be read has had its answer: this is a fault of before, and not one of it.
	return usw_lasts(&target->changing_since_ns, is_changing, USW_UNRAISED_NS) &&
			       usw_task_faults_in(target->pid, usw_target_thread(target, fault),
						  SYS_mremap) &&
			       usw_target_leave_rest(target, fault->page)
		       ? USW_DROPPED
		       : USW_DEFER;
}

/**
 * A hole: memory nobody has touched yet, or has given back. Zeros are copied, not mapped: a mapped
 * zero page would become a real one at its first write, without a message and past the limit.
 */
static enum usw_verdict fill_hole(struct usw_fault_thread *thread, struct usw_target *target,
				  const struct usw_fault *fault)
{
	int64_t room = usw_session_room(thread->session);

	if (!usw_answer_has_room(thread, target, fault))
		return leave_hole(target, fault);
	if (fault->page == target->hole_next)
		target->hole_window =
			(uint32_t)usw_min(target->hole_window * 2 + 1, USW_HOLE_PAGES_MAX);
	else
		target->hole_window = 1;

	// From here until `filling` is even again no page that looks like a hole is taken out: see
	// evict_batch() in evict.c. First the flag, then the words.
	atomic_fetch_add(&target->filling, 1);
	usw_page_word *word = usw_pagemap_find(&target->pagemap, fault->page);
	enum usw_page_state state = word ? usw_page_state(atomic_load(word)) : USW_PAGE_NONE;
	enum usw_verdict verdict = USW_DEFER;
	if (state == USW_PAGE_NONE || state == USW_PAGE_RESIDENT) {
		uint32_t limit =
			(uint32_t)usw_min(target->hole_window, room > 0 ? (uint64_t)room : 1);

		uint32_t length = hole_length(target, fault->page, limit);

		length = 1 + usw_guards_before(target, fault->page + USW_PAGE_BYTES, length - 1);
		verdict = fill(thread, target, fault->page, length, state == USW_PAGE_RESIDENT);
	}
	atomic_fetch_add(&target->filling, 1);
	return verdict == USW_DEFER ? leave_hole(target, fault) : verdict;
}

/**
 * The first write to a zero page that was mapped before the range was registered: it becomes a real
 * page. Few at once even in a stream, since what is let go here and not written soon is forgotten
 * by the next measurement, and would grow unseen when it is.
 */
static enum usw_verdict let_write(struct usw_fault_thread *thread, struct usw_target *target,
				  const struct usw_fault *fault)
{
	int64_t room = usw_session_room(thread->session);

	if (!usw_answer_has_room(thread, target, fault))
		return USW_DEFER;
	target->write_window =
		fault->page == target->write_next
			? (uint32_t)usw_min(target->write_window * 2 + 1, USW_WRITE_PAGES_MAX)
			: 1;
	uint32_t length = (uint32_t)usw_min(target->write_window, room > 0 ? (uint64_t)room : 1);
	int ret = usw_uffd_unprotect(target->uffd, fault->page, (uint64_t)length * USW_PAGE_BYTES);

	if (ret == -ENOENT && length > 1) { // the run leaves its mapping
		length = 1;
		ret = usw_uffd_unprotect(target->uffd, fault->page, USW_PAGE_BYTES);
	}
	if (ret)
		return usw_answer_failed(thread, target, fault->page, ret);
	usw_session_charge(thread->session, length);
	usw_count(&thread->counters, faults_hole, 1);
	target->write_next = fault->page + (uint64_t)length * USW_PAGE_BYTES;
	return USW_ANSWERED;
}

/** A forked child's shim asks who it is (see wire.h). */
static enum usw_verdict answer_token(struct usw_fault_thread *thread, struct usw_target *target,
				     uint64_t page)
{
	uint64_t done;

	memset(thread->page, 0, USW_PAGE_BYTES);
	memcpy(thread->page, &target->token, sizeof(target->token));
	int ret = usw_uffd_copy(target->uffd, page, thread->page, USW_PAGE_BYTES, &done);
	return ret ? usw_answer_failed(thread, target, page, ret) : USW_ANSWERED;
}

enum usw_verdict usw_answer(struct usw_fault_thread *thread, struct usw_target *target,
			    const struct usw_fault *fault)
{
	// The page map does not say yet what is where; an answer would be refused as well.
	if (usw_unlikely(target->told_count))
		return leave_hole(target, fault);
	if (usw_unlikely(fault->page == target->token_page))
		return answer_token(thread, target, fault->page);
	if (usw_unlikely(fault->is_again) && usw_guards_meet(target, fault->page))
		return usw_answer_failed(thread, target, fault->page, -ENOENT);
	if (usw_unlikely(fault->flags & UFFD_PAGEFAULT_FLAG_WP))
		return let_write(thread, target, fault);
	if (usw_unlikely(usw_target_may_be_wiped(target, fault->page))) {
		pthread_mutex_lock(&target->map_lock);
		usw_target_wipe(target);
		pthread_mutex_unlock(&target->map_lock);
	}

	usw_page_word *word = usw_pagemap_find(&target->pagemap, fault->page);
	uint64_t now = word ? atomic_load_explicit(word, memory_order_acquire) : 0;
	switch (usw_page_state(now)) {
	case USW_PAGE_EVICTED:
		return fault_in(thread, target, fault, word, now);
	case USW_PAGE_NONE:
	case USW_PAGE_RESIDENT: // an old message, or memory that went without an event: a hole
		return fill_hole(thread, target, fault);
	case USW_PAGE_EVICTING:
		return USW_DEFER;
	case USW_PAGE_POISONED:
		return usw_answer_poison(thread, target, fault->page, word, now, "", "");
	}
	return USW_DROPPED;
}
