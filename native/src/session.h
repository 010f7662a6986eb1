// SPDX-License-Identifier: MIT

/**
 * @file
 * A session: one budget over a tree of targets, and everything they share.
 *
 * Residency is known in two parts: `resident_base` is what the kernel said when the reclaim
 * thread last asked, `resident_delta` what has been brought in and out since. The fault thread
 * looks for room before it lets a page in and charges it once it is there: what is measured in between
 * is counted twice for a moment, never not at all.
 */

#ifndef USW_SESSION_H
#define USW_SESSION_H

#include "ahead.h"
#include "alarm.h"
#include "balance.h"
#include "equal.h"
#include "pack.h"
#include "request.h"
#include "stats.h"
#include "target.h"
#include "tier.h"
#include "turn.h"
#include "vacancy.h"

#define USW_FAULT_THREADS_MAX 8u
#define USW_EVENTS_MAX 256u
/** Threads that may wait for programs' mmap locks at the same time: see watch.h. */
#define USW_REGISTRARS 32u
/** No effective limit is ever smaller: a program needs some pages at once to make progress. */
#define USW_FLOOR_PAGES 256

/** News for the control plane: a bounded queue and an eventfd. */
struct usw_event_queue {
	pthread_mutex_t lock;
	int fd;
	uint32_t head, tail;
	struct usw_event at[USW_EVENTS_MAX];
};

/** A thread in a PID namespace below ours: its own number, and that which it has here, 0 for none. */
struct usw_followed {
	uint32_t target_id;
	uint32_t own_id;
	uint32_t number;
};

struct usw_fault_thread {
	struct usw_session *session;
	pthread_t thread;
	bool started;
	int epoll_fd;
	int kick_fd;
	_Atomic bool is_asked; /* some target of this thread has one of its *_asked set */
	_Atomic uint32_t deferred_count;
	struct usw_target *deferred_list;
	int processor;                            /* where it has moved to; -1: nowhere */
	uint64_t follow_due_ns;                   /* when to look again where it should be */
	struct usw_followed followed;             /* whom it has followed last, of those below */
	uint64_t followed_faults, followed_pages; /* answered and brought in ahead until then */
	struct usw_counters counters __attribute__((aligned(64)));
	_Atomic uint64_t near_faults, disk_pages, disk_ns; /* see balance.h */
	struct usw_histogram latency;
	char *page;   /* content on its way in */
	char *zeros;  /* USW_HOLE_PAGES_MAX pages */
	char *window; /* USW_STREAM_WINDOW_MAX pages: content on its way in ahead of its fault */
	struct usw_disk_faults *disk; /* NULL before its first disk fault */
};

struct usw_reclaim {
	pthread_t thread;
	bool started;
	_Atomic uint32_t kick; /* futex: raised by whoever wants the thread to look */
	_Atomic uint32_t sleeping;
	struct usw_counters counters __attribute__((aligned(64)));
	uint64_t accounted_ns;
	uint64_t probed_ns;
	uint32_t last_clock; /* the fault clock, and when it was last seen to have moved */
	uint64_t faulted_ns;
	uint64_t compacted_ns; /* when it last looked for garbage */
	bool compacting;       /* the last look emptied a segment: there may be more */
	bool packing;          /* the last look moved packed objects: there are more */
	bool pressed;          /* the last sweep did not make room: shared pages must go, too */
	uint64_t stress_due_ns;
	bool some_end;             /* a target is retired and not freed yet */
	bool some_leave;           /* pages may be about to go by the program's own wish */
	uint64_t sweep_ns;         /* how long the last sweep took */
	uint64_t barren_since_ns;  /* no sweep has given anything since then; 0: the last one did */
	uint64_t stuck_since_ns;   /* over the limit and nothing left to give since then; 0: no */
	uint64_t cramped_since_ns; /* no tier takes anything since then; 0: one does */
	bool is_holding;           /* nothing is let in or taken out: there is no place for it */
	bool packs_all;            /* over the budget, and nothing but packing makes room */
	bool alone_told;           /* that a child runs without hands */
	bool full_told;            /* that the program waits for room, and since then ... */
	bool room_seen;            /* ... somebody has tried to make some */
	uint64_t went_on_ns;       /* when there was last a reason to wait */
	uint32_t copies_seen, copies_good; /* in RAM, of pages that have left of late */
	uint64_t random;
	uint64_t pinned_tries; /* how often a page could not be moved though it is not shared */
	bool fell_short;       /* the last sweep left less than the reserve, or met more pinned */
	uint64_t crammed_ns;   /* when a sweep last left the limit full ... */
	uint64_t crammed_since_ns;   /* ... and since when, but for moments; 0: it does not */
	uint64_t unmanaged_since_ns; /* far over the limit, and sweeps give nothing; 0: they do */
	bool warned_unmanaged;
	uint64_t floor_since_ns; /* the limit has stood at its floor since then; 0: it does not */
	bool warned_floor;
	struct usw_turns turns;
};

/** A thread that does nothing but register: see watch.h. */
struct usw_registrar {
	struct usw_session *session;
	pthread_t thread;
	bool started;
	_Atomic uint32_t asked; /* futex; 1 until it has come back */
};

struct usw_watch {
	struct usw_registrar registrars[USW_REGISTRARS];
	pthread_t thread;
	bool started;
	_Atomic uint32_t kick; /* futex */
	_Atomic bool dozing;   /* it sleeps for long: whoever sees something move wakes it */
	_Atomic bool asleep;   /* so do all targets; alarms tell when one runs again */
	struct usw_alarms alarms;
	uint32_t calm_rounds; /* looks in a row at which nothing had moved */
	int64_t last_base;
	uint32_t last_clock;
	uint64_t measured_ns;
	int64_t sent_base; /* resident when a registrar was last sent */
	uint64_t sent_ns;
	_Atomic int64_t growth_pages_per_ms;
};

enum usw_parking_stage {
	USW_PARKING_EMPTY, /* segments with garbage are emptied */
	USW_PARKING_COUNT, /* what is whose is counted */
	USW_PARKING_DOWN,  /* what was marked is written */
};

/** The park that is at its last part; see park.h. */
struct usw_parking {
	uint32_t target_id; /* 0: there is none */
	enum usw_parking_stage stage;
	uint32_t empties_left;
	uint64_t address; /* counted up to here */
	uint32_t *shares; /* by segment: objects of the target */
};

struct usw_session {
	struct usw_config config;
	uint64_t hash_seed;
	bool has_guards; /* programs may have: the kernel knows MADV_GUARD_INSTALL */

	struct usw_segments segments;
	struct usw_vacancies vacancies; /* reclaim thread */
	struct usw_vswap vswap;
	struct usw_nodes nodes;
	struct usw_standby_space standbys;
	struct usw_equal equal; /* reclaim thread */
	struct usw_tiers tiers;
	struct usw_packer packer; /* reclaim thread */
	struct usw_ahead ahead;   /* reclaim thread */

	_Atomic uint64_t memory_limit_bytes __attribute__((aligned(64)));
	_Atomic uint64_t resident_limit_bytes;
	_Atomic int64_t limit_pages; /* in force now; set by reclaim */
	_Atomic int64_t low_pages;   /* with less room than this the reclaim thread has work */
	_Atomic int64_t resident_base;
	_Atomic bool keep_copies; /* kept copies are affordable */
	_Atomic bool copies_pay; /* where they are not, some are worth it: most are good when asked */
	_Atomic bool let_pass;   /* nothing can be evicted: answer faults whatever the limit */
	_Atomic int64_t resident_delta __attribute__((aligned(64)));
	/* Faults answered with what had left; pages of a walk over a disk count, of one over RAM not. */
	_Atomic uint32_t fault_clock __attribute__((aligned(64)));

	pthread_mutex_t targets_lock;
	struct usw_target *_Atomic targets; /* pushed at the head by any, removed by reclaim */
	uint32_t next_target_id;
	_Atomic uint64_t targets_total;
	_Atomic uint64_t targets_now;

	_Atomic bool stopping;
	_Atomic bool out_of_memory;
	_Atomic bool disk_waits_told; /* as the next, for reads from disks */
	_Atomic bool fork_waits_told; /* that there are no descriptors for the agent */
	_Atomic bool waits_for_room;  /* every tier is full, and that is not the end */
	_Atomic bool room_made;       /* set by whoever makes some, taken by reclaim */
	struct usw_fault_thread threads[USW_FAULT_THREADS_MAX];
	uint32_t thread_count;
	uint32_t next_thread;
	struct usw_reclaim reclaim;
	struct usw_watch watch;
	struct usw_event_queue events;
	struct usw_requests requests;

	struct usw_parking parking; /* reclaim thread */
	struct usw_balance balance; /* reclaim thread */
	bool is_demoting;           /* between the watermarks on the way down; reclaim thread */
	uint64_t tight_since_ns;    /* RAM is tight since then; 0: it is not; reclaim thread */
	uint64_t own_bytes;         /* the agent's own anonymous memory; reclaim thread */
	_Atomic uint64_t resident_peak_bytes;
	_Atomic uint64_t ram_bytes;
	_Atomic uint64_t ram_peak_bytes;
	_Atomic uint64_t standby_pages;
	_Atomic uint64_t metadata_bytes;
	_Atomic uint64_t ram_stored_bytes;
	_Atomic uint64_t ram_segments;
	_Atomic uint64_t compacted_segments;
};

/** The time of the page map, of which a word has the lower bits: the fault clock in steps of 16. */
static inline uint32_t usw_session_stamp(const struct usw_session *session)
{
	return atomic_load_explicit(&session->fault_clock, memory_order_relaxed) >> USW_STAMP_SHIFT;
}

/** The limit in stamps: as long as it takes to replace all that is resident. */
static inline uint32_t usw_session_limit_stamps(const struct usw_session *session)
{
	int64_t pages = atomic_load_explicit(&session->limit_pages, memory_order_relaxed);

	return usw_stamps_of((uint64_t)pages);
}

/** A page that left less than so many stamps ago was near: see balance.h. 0: there is no budget. */
static inline uint32_t usw_session_near_stamps(const struct usw_session *session)
{
	uint64_t memory = atomic_load_explicit(&session->memory_limit_bytes, memory_order_relaxed);

	return memory == UINT64_MAX ? 0 : usw_stamps_of(memory / USW_NEAR_SHARE / USW_PAGE_BYTES);
}

/** Resident pages, as far as is known. */
static inline int64_t usw_session_resident(const struct usw_session *session)
{
	return atomic_load_explicit(&session->resident_base, memory_order_relaxed) +
	       atomic_load_explicit(&session->resident_delta, memory_order_relaxed);
}

/** Pages that may still become resident. Negative: over the limit. */
static inline int64_t usw_session_room(const struct usw_session *session)
{
	return atomic_load_explicit(&session->limit_pages, memory_order_relaxed) -
	       usw_session_resident(session);
}

static inline void usw_session_charge(struct usw_session *session, int64_t pages)
{
	atomic_fetch_add_explicit(&session->resident_delta, pages, memory_order_relaxed);
}

/**
 * Put a new target into the list and give it to a fault thread, which serves it from now on. It
 * may be gone when this returns: use the ID that was stored.
 */
int usw_session_adopt(struct usw_session *session, struct usw_target *target, uint32_t *ret_id);

/**
 * Tell the control plane something. Never blocks; when the queue is full the news is lost. That a
 * target has come is not: the control thread says it, and reads it then. Nor is it that one has gone,
 * if usw_session_can_tell_end() was asked before.
 */
void usw_session_report(struct usw_session *session, enum usw_event_kind kind, uint32_t target_id,
			int pid, const char *format, ...) __attribute__((format(printf, 5, 6)));

/**
 * Whether there is a place for the news that a target is gone. A session lasts until its control
 * plane has heard that of each. The reclaim thread calls.
 */
bool usw_session_can_tell_end(struct usw_session *session);

/**
 * The next target of the list, or the first after NULL; NULL at the end. What it returns is pinned
 * until it is handed in again, so the list may be walked without holding the lock. Any thread.
 */
struct usw_target *usw_session_walk(struct usw_session *session, struct usw_target *previous);

/** Start the watch thread and its registrars. 0 or -errno. */
int usw_watch_start(struct usw_session *session);
/** End those that were started; `stopping` is set. */
void usw_watch_stop(struct usw_session *session);

/** Wake the watch thread if it has lain down because nothing moved. */
void usw_watch_kick(struct usw_session *session);

/** Wake the reclaim thread if it sleeps. */
void usw_reclaim_kick(struct usw_session *session);

/** Make the fault threads look at their waiting faults again, if there are any. */
void usw_fault_kick(struct usw_session *session);
/** Have one fault thread look at what it is asked for. Any thread. */
void usw_fault_kick_one(const struct usw_fault_thread *thread);

void *usw_fault_main(void *fault_thread);
void *usw_reclaim_main(void *session);

#endif /* USW_SESSION_H */
