// SPDX-License-Identifier: MIT

/**
 * @file
 * A target: one address space whose memory is managed, and who may touch what of it.
 *
 *   control thread   makes a target (handshake), looks descriptors up by ID
 *   fault thread     one for the target's whole life: reads its messages, answers its faults,
 *                    applies its events, retires it when its process is gone
 *   reclaim thread   registers, evicts, drains its standby, and frees it after it was retired
 *   watch thread     measures it
 *   registrars       near the limit register the stretches in which it grows
 *
 * Locks, in this order:
 *
 *   target->map_lock        layout of the page map, the ranges, and a batch in flight from pick to
 *                           publish. The fault thread takes it to apply events, the reclaim thread
 *                           for a batch or a registration. Answering a fault takes no lock
 *   session->targets_lock   the list; held for list operations only. Targets leave the list under
 *                           it, so whoever found one there may use it while holding the lock, or
 *                           for longer after raising its `pins`
 *   nodes->lock, standby_space->lock, events->lock, target->stretches_lock,
 *   target->leaving.lock    leaves
 *
 * The rule that keeps a stale plan from touching a new mapping (see wire.h, the gate): the fault
 * thread sets events_pending and raises the epoch inside the gate, before anybody released by
 * the event can have run far, and clears events_pending when the page map tells the truth again.
 * The reclaim thread, holding map_lock, reads the epoch first and events_pending second; pending
 * means that its view is stale, a later rise makes hands refuse the batch.
 */

#ifndef USW_TARGET_H
#define USW_TARGET_H

#include <pthread.h>

#include "age.h"
#include "cluster.h"
#include "ending.h"
#include "equal.h"
#include "leaving.h"
#include "maps.h"
#include "pagemap.h"
#include "standby.h"
#include "stream.h"
#include "uffdswap.h"

struct usw_session;
struct usw_fault_thread;

/** Faults of one target that wait. When they are more, their threads are made to fault again. */
#define USW_DEFERRED_MAX 1024u

/** Stretches of a target's address space the watch thread registers. */
#define USW_STRETCHES_MAX 16u

struct usw_fault {
	uint64_t page;
	uint64_t since_ns;
	uint32_t flags; /* of the message: UFFD_PAGEFAULT_FLAG_* */
	uint32_t thread_id;
	bool is_again; /* it could not be answered before: nothing new is learned from it */
};

/* Moves of memory that may be half told at a time: as many as there are threads that do it. */
#define USW_OWED_MAX 64u
/* Events of one target that wait at a time. */
#define USW_TOLD_MAX 128u

/** An event that has been read and not been followed yet. */
struct usw_told {
	struct uffd_msg message;
	struct usw_target *child; /* of a fork; nobody else knows it */
	bool is_expected;         /* an unmapping that takes nothing away: see event.c */
};

enum usw_target_state {
	USW_TARGET_LIVE = 1,
	USW_TARGET_RETIRED = 2, /* the fault thread has let go; the reclaim thread frees it */
};

struct usw_target {
	struct usw_target *next; /* session's list */
	struct usw_session *session;
	uint32_t id;
	uint64_t token; /* what its token page will say to a forked child's shim; random */
	_Atomic uint32_t state;
	_Atomic uint64_t page_asked;  /* that reclaim wants back in; 0: none, or it was seen to */
	_Atomic uint64_t guard_asked; /* where reclaim saw one in place of what has left; or 0 */
	_Atomic bool retire_asked;    /* by whom the fault thread does not hear otherwise */
	_Atomic bool broken;          /* can no longer be evicted from */
	_Atomic bool kill_reported;
	_Atomic uint32_t pins; /* not freed while somebody uses it without a lock */

	int uffd;
	/* -1 until the handshake of a forked child; set under map_lock, never changed again. */
	int pidfd;
	int pid;
	bool is_below; /* in a PID namespace below ours: see usw_target_thread() */
	int statm_fd;
	int maps_fd;
	int pagemap_fd;
	int smaps_fd;
	int area_fd;
	int connection;
	uint64_t area_start;
	uint64_t token_page;
	struct usw_ring *ring;
	_Atomic bool has_hands;

	pthread_mutex_t map_lock;
	struct usw_pagemap pagemap;
	struct usw_ranges registered; /* under map_lock */
	struct usw_leaving leaving;   /* not to be evicted: the program is giving it back */
	_Atomic bool armed;           /* the token page is registered */
	_Atomic bool
		inherited_unchecked; /* a fork whose parent was gone before its smaps could be read */
	/*
	 * Of a fork: ranges with words that the parent's smaps, read when it ran on already, says
	 * are wiped in a child. Whether they are is known at the handshake; if anybody asks before,
	 * they are. Under map_lock; its memory stays until the end, for who looks without it.
	 */
	struct usw_ranges maybe_wiped;
	_Atomic bool may_be_wiped; /* there are some */
	/*
	 * Of a fork: ranges with words that no child gets, and of which this child could not be
	 * asked since it had told of something itself. Under map_lock; its fault thread.
	 */
	struct usw_ranges maybe_left;
	_Atomic uint32_t epoch; /* raised by the fault thread at each event */
	_Atomic bool events_pending;
	_Atomic uint32_t reading; /* odd while messages are read that are not announced yet */
	/* Raised by the fault thread when memory has been moved, or a child has a copy of it. */
	_Atomic uint32_t generation;
	_Atomic bool layout_changed; /* something was unmapped: a new mapping may be in its place */
	/*
	 * Where nothing but private anonymous memory was at the last look; reclaim writes,
	 * registrars read.
	 */
	pthread_mutex_t stretches_lock;
	uint32_t stretch_count;
	struct usw_range stretches[USW_STRETCHES_MAX];
	_Atomic uint32_t registrations; /* of stretches, begun so far */
	_Atomic uint32_t registering;   /* of them, those that have not come back */

	/* Fault thread only. */
	struct usw_fault_thread *thread;
	struct usw_fault *deferred;
	_Atomic uint32_t deferred_waiting; /* entries of `deferred`; the reclaim thread looks at it */
	struct usw_target *next_deferred; /* thread's list of targets with waiting faults */
	bool on_deferred_list;
	_Atomic int hands_processor; /* where it has been moved to; -1: nowhere. Others let it go */
	_Atomic uint32_t filling;    /* a hole may be being filled: see evict_batch() */
	struct usw_streams streams;
	struct usw_clusters clusters;
	uint64_t hole_next;   /* a hole fault here goes on with a stream of them */
	uint32_t hole_window; /* pages to fill at the next hole of the stream */
	uint64_t write_next;  /* the same for first writes to zero pages */
	uint32_t write_window;

	uint64_t changing_since_ns; /* an event is announced */
	uint32_t owed_count;        /* moves whose second half is still to be told */
	uint32_t came_count; /* moves that were followed since the kernel has last answered */
	uint32_t told_count; /* events that wait for others: see event.c */
	struct usw_range owed[USW_OWED_MAX];
	struct usw_range came[USW_OWED_MAX]; /* where they went; the first ones, if there are more */
	struct usw_told told[USW_TOLD_MAX];

	/* Written by the fault thread, read by the control thread. */
	_Atomic uint64_t faults;   /* evicted pages that came back because they were touched */
	_Atomic uint64_t refaults; /* of those, touched again soon after they had left */

	/* Watch thread; others read the first two. What was registered is the registrars'. */
	_Atomic uint64_t anon_pages;         /* resident, as last measured */
	_Atomic uint64_t data_pages;         /* size of writable private memory, as last measured */
	_Atomic uint64_t watched_data_pages; /* when the stretches were last registered */
	_Atomic uint32_t watched_epoch;

	/* Reclaim thread only. */
	struct usw_standby standby;
	struct usw_equal_run equal_run; /* where its next page may be stored already */
	struct usw_maps eligible;
	bool ending_owed;          /* pages have left since the last look at that; reclaim */
	uint64_t strayed;          /* the last page that had to come back for that; reclaim */
	struct usw_ending ending;  /* not to be evicted: the kernel writes there in the end */
	struct usw_ranges refused; /* the kernel would not register it */
	uint64_t refused_ns;       /* when `refused` was last emptied */
	bool eligible_stale;
	uint64_t looked_ns;   /* when `eligible` was read */
	uint64_t look_ns;     /* how long that took */
	bool gave_in_lap;     /* pages have left in this lap of the sweep */
	bool shared_in_lap;   /* this lap of the sweep has met pages shared since a fork */
	bool unshare_lap;     /* it takes them over: the one before has passed over them */
	uint64_t cursor;      /* address at which the sweep goes on */
	struct usw_age age;   /* and what is too young for it */
	uint64_t owed_pages;  /* what it is to give before its turn is over */
	uint32_t barren_laps; /* of the sweep that have given nothing, one after the other */
	uint64_t scanned_data_pages;
	uint64_t scan_due_ns;    /* its mappings are not read again before */
	uint64_t alone_since_ns; /* forked, and has not brought its hands; 0: not seen yet */
	uint64_t ends_since_ns;  /* retired, and somebody is there still; 0: not seen yet */
	uint32_t posted_seq;
	_Atomic uint32_t hands_pid; /* in our PID namespace, by the kernel's word; 0: not known yet */
};

/** Allocate with every descriptor -1. NULL: no memory. */
struct usw_target *usw_target_create(struct usw_session *session);
/** Free everything. Caller is the reclaim thread, or nothing runs. NULL is fine. */
void usw_target_destroy(struct usw_target *target);

/**
 * Take over what a handshake delivered: check the area, map the ring. On failure nothing has been
 * taken over.
 */
int usw_target_attach(struct usw_target *target, const struct usw_hello *hello, const int *fds,
		      int pidfd, int pid, int connection, struct usw_error *error);

/** Register the stages, which a fork does not inherit: that alone raises no event. 0 or -errno. */
int usw_target_register_stages(struct usw_target *target);

/**
 * Register the token page, before anything else of the program is. Any thread, without a lock: it
 * may wait long for the program's mmap lock, and twice is as good as once. On failure the target is
 * broken: nothing of it will be evicted. -EAGAIN: not now.
 */
int usw_target_arm(struct usw_target *target);

/**
 * Register the eligible mappings in [start, end), where at the last look nothing else was mapped,
 * and put on the list those of which the kernel says that they are. There may be gaps. Caller holds
 * map_lock, is the reclaim thread. -EAGAIN: the mappings are changing, some may have been
 * registered; -EINVAL: something else is there now; -EBUSY: another userfaultfd has a part of it.
 */
int usw_target_register(struct usw_target *target, uint64_t start, uint64_t end);

/**
 * Resident anonymous pages and data size from statm: 2 us. False: the process is gone. The watch
 * thread calls.
 */
bool usw_target_measure(struct usw_target *target);

/**
 * Take off the list of registered ranges of a forked child what it did not inherit: MADV_DONTFORK
 * leaves its mapping out. What the program maps in its place is not registered, and what the page
 * map says of it is the parent's. The child waits for its welcome, so that its mappings stay as
 * they are. On failure the child is broken: nothing of it will be evicted. Caller holds map_lock.
 */
void usw_target_check_inherited(struct usw_target *child);

/**
 * False if a page that is mapped now, and on the list of registered ranges, is not registered. If
 * what is there came in place of what was, and no event told of it (shmat(2) with SHM_REMAP raises
 * none where it is not the shim's), its mapping is taken off the list. Two microseconds at most, as
 * a rule half of one. Caller holds map_lock, is the reclaim thread.
 */
bool usw_target_owns(struct usw_target *target, uint64_t page);

/**
 * Unregister the mapping with a page that the kernel has just refused to copy: -EFAULT for a private
 * one of /dev/zero, which it takes for anonymous memory, but behind the end of an empty file, and
 * -EINVAL for a huge page of hugetlbfs, which no small one can fill. It may have been registered
 * with the rest of a stretch and is not on the list of registered ranges.
 * Nothing can take its place before the caller, the fault thread, has read the event of that.
 * False: not done, since a page of it has left, or for want of memory.
 */
bool usw_target_let_go(struct usw_target *target, uint64_t page);

/**
 * Leave a hole, and what comes after it in its mapping, to the kernel: unregistered, and off the
 * list. Not where a page has left. False: not done. The fault thread calls, without map_lock.
 */
bool usw_target_leave_rest(struct usw_target *target, uint64_t page);

/** Whether a page of [start, end) has left or is leaving. Caller: map_lock, or the fault thread. */
bool usw_target_has_out(const struct usw_target *target, uint64_t start, uint64_t end);

/** Drop what the page map says of [start, end). Caller holds map_lock. */
void usw_target_forget(struct usw_target *target, uint64_t start, uint64_t end);

/**
 * The number here of a thread that has faulted; 0: there is none. As long as usw_task_number() takes
 * if the target is below. Caller is the fault thread.
 */
uint32_t usw_target_thread(const struct usw_target *target, const struct usw_fault *fault);

/** True while the process has not exited. Any thread. */
bool usw_target_is_running(const struct usw_target *target);

/** Whether pages can leave: somebody serves it, and its hands can take them. Any thread. */
static inline bool usw_target_is_evictable(struct usw_target *target)
{
	return atomic_load(&target->state) == USW_TARGET_LIVE && atomic_load(&target->has_hands) &&
	       !atomic_load(&target->broken);
}

/** SIGKILL the process and report why, once, or that it is out of our reach. Any thread. */
void usw_target_kill(struct usw_target *target, const char *why);

/** Take it that what may be wiped in a forked child is so. Caller holds map_lock. */
void usw_target_wipe(struct usw_target *child);

/** Whether a page may be wiped. Without a lock; the target's fault thread. */
static inline bool usw_target_may_be_wiped(const struct usw_target *target, uint64_t page)
{
	if (!atomic_load_explicit(&target->may_be_wiped, memory_order_acquire))
		return false;
	uint32_t i = usw_ranges_find(&target->maybe_wiped, page);

	return i < target->maybe_wiped.count && target->maybe_wiped.at[i].start <= page;
}

/**
 * Poison every evicted page: whoever is left without a pager gets SIGBUS, never zeros. For the end
 * of a session, when a target may be left that could not be killed (a fork that never said hello).
 */
void usw_target_poison_all(struct usw_target *target);

/** Ask the target's fault thread to retire it. Any thread. */
void usw_target_ask_retire(struct usw_target *target);

/** Have the fault thread bring an evicted page in, if it can at once. The reclaim thread calls. */
void usw_target_ask_page(struct usw_target *target, uint64_t page);

/** Have the fault thread forget what guards replace, from a page on. The reclaim thread calls. */
void usw_target_ask_forget(struct usw_target *target, uint64_t page);

/** True if the program no longer runs in this address space (it called exec). Reclaim thread. */
bool usw_target_has_left(struct usw_target *target);

#endif /* USW_TARGET_H */
