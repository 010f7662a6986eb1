/* SPDX-License-Identifier: MIT */

/**
 * @file
 * What a fault is answered with: the content that the page map names, zeros, or leave to write.
 *
 * The path of a fault, from top to bottom: page map, descriptor, content into the thread's buffer,
 * verify, UFFDIO_COPY, account. No lock, no allocation, no logging on it. Everything here runs on
 * the target's fault thread.
 */

#ifndef USW_ANSWER_H
#define USW_ANSWER_H

#include "pagemap.h"
#include "target.h"

/** Pages of zeros a stream of hole faults gets at once, at most. */
#define USW_HOLE_PAGES_MAX 32u

enum usw_verdict {
	USW_ANSWERED,
	USW_DEFER,   /* try again soon */
	USW_DROPPED, /* nobody waits for it any more */
	USW_READING, /* its content is on a disk and was asked for */
};

/** What a page comes in for. */
struct usw_access {
	bool touches; /* somebody waits for it; else it comes ahead of that */
	bool writes;  /* it is about to change, as far as is known */
};

/** Answer one fault, whatever the page is. */
enum usw_verdict usw_answer(struct usw_fault_thread *thread, struct usw_target *target,
			    const struct usw_fault *fault);

/**
 * Bring an evicted page back that nobody waits for. 1, or 0 if there was nothing to bring or it
 * cannot be brought; -EAGAIN: not now, an event is unread; -EINPROGRESS: its segment is on its way
 * up from a disk.
 */
int usw_answer_unasked(struct usw_fault_thread *thread, struct usw_target *target, uint64_t page);

// --- Parts of an answer -------------------------------------------------------------------------

/**
 * Whether it is hands that faults: it does only when it takes over shared pages for the reclaim
 * thread, which waits.
 */
bool usw_answer_is_hands(const struct usw_target *target, const struct usw_fault *fault);

/** Whether a page may come in now. */
bool usw_answer_has_room(struct usw_fault_thread *thread, struct usw_target *target,
			 const struct usw_fault *fault);

/** The page map's word for a page, and what is in it; NULL if the page is not evicted. */
usw_page_word *usw_answer_find_evicted(const struct usw_target *target, uint64_t page,
				       uint64_t *ret_now);

/** What the one who faults is about to do. */
struct usw_access usw_answer_access(const struct usw_fault *fault);

/**
 * Hand in what is known to be right; the page map names its ID. 0, or what the copy said: -EEXIST is
 * settled, too, and the others have changed nothing.
 */
int usw_answer_hand_in(struct usw_fault_thread *thread, struct usw_target *target, uint64_t page,
		       usw_page_word *word, uint64_t now, const void *content,
		       enum usw_backend backend, bool on_disk, struct usw_access access);

/** What to do when a copy of one page did not go in. The page is not in from us in any case. */
enum usw_verdict usw_answer_failed(struct usw_fault_thread *thread, struct usw_target *target,
				   uint64_t page, int error);

/** Never zeros, never a guess: an access to this page ends in SIGBUS. */
enum usw_verdict usw_answer_poison(struct usw_fault_thread *thread, struct usw_target *target,
				   uint64_t page, usw_page_word *word, uint64_t now,
				   const char *where, const char *why);

/** The page is there: its word says so. */
void usw_answer_settle(struct usw_fault_thread *thread, usw_page_word *word, uint64_t now,
		       enum usw_backend backend, bool on_disk, struct usw_access access);

/** A page has come back because it was touched, from a disk or from RAM. */
void usw_answer_count_touch(struct usw_fault_thread *thread, struct usw_target *target,
			    uint64_t now, bool on_disk);

#endif /* USW_ANSWER_H */
