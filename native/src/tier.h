// SPDX-License-Identifier: MIT

/**
 * @file
 * Disk tiers: which there are, and moving whole segments between them and RAM.
 *
 * A move is one sequential read or write of a megabyte and one store in the table of segments; no
 * descriptor and no page map is touched, so demotion, promotion and the removal of a tier cost the
 * same whatever the segments hold. The old place is given back only after the new one is published,
 * and a move that fails leaves the segment where it was.
 *
 * Threads: the owner of the segments (the reclaim thread) decides, begins moves and publishes their
 * results, in usw_tiers_step(). The mover, a thread of its own that is started with the first tier,
 * seals and unseals, reads and writes, and gives space on disks back; it never changes the table of
 * segments. Fault threads read single objects by themselves (diskfault.h); the control thread adds
 * and removes tiers. `lock` is over what mover, owner and control thread share; nothing is done
 * under it that waits, but when a tier comes or goes: then for its file system.
 *
 * Readers never keep a tier from going, though their read may still wait in a queue that knows
 * only the number of a file descriptor. Another file under that number would be read instead, and
 * an eventfd or a socket would lose a message by it. So each tier's readers have a number that is
 * never closed: between tiers it stands for /dev/null, which is at its end at once. Whatever such a
 * read brings, the reader finds that the segment has moved.
 */

#ifndef USW_TIER_H
#define USW_TIER_H

#include "aio.h"
#include "disk.h"
#include "opener.h"
#include "seal.h"
#include "segment.h"
#include "tag.h"

/** Tiers, RAM among them: disk tiers are numbered 1 .. USW_TIERS_MAX - 1. */
#define USW_TIERS_MAX 9u
/** Moves under way at a time: enough for the disk to be busy while the next is sealed. */
#define USW_MOVES_MAX 6u
#define USW_DEAD_SLOTS_MAX 256u

enum usw_tier_state {
	USW_TIER_NONE,
	USW_TIER_ACTIVE,
	USW_TIER_LEAVING, /* its segments are on their way out; nothing new goes there */
};

/** The end of a tier's file, which takes a while: the owner asks, the mover does it. */
enum usw_tier_ending { USW_ENDING_NOT, USW_ENDING_ASKED, USW_ENDING_DONE };

struct usw_tier {
	_Atomic uint32_t state; /* enum usw_tier_state */
	_Atomic int fd;         /* for fault threads, a number of its own; -1: never had a disk */
	_Atomic uint32_t align_bytes;
	_Atomic uint32_t ending;              /* enum usw_tier_ending */
	_Atomic uint64_t faulted_ns;          /* when a fault last asked for an object; a hint */
	char name[32];                        /* written before the state, with `lock` */
	uint32_t id;                          /* in the order in which they were added */
	enum usw_tier_kind kind;              /* as before */
	int priority;                         /* higher is filled first */
	struct usw_disk *disk;                /* kept for the next tier of this number */
	uint64_t write_retry_ns;              /* nothing is written to it before; owner */
	_Atomic uint64_t read_retry_ns;       /* no whole segment is read from it before; owner */
	_Atomic uint32_t write_failures;      /* tries in a row that failed; owner */
	bool read_failed;                     /* the same; owner */
	uint64_t write_told_ns, read_told_ns; /* when the user was told; 0: never; owner */
	_Atomic uint64_t free_bytes;          /* when last asked; owner */
	_Atomic uint64_t segments;            /* g; owner */
	_Atomic uint64_t pages;               /* g; owner */
	/* g; of the segments that live there. Slots that are on their way back are held, too. */
	_Atomic uint64_t stored_bytes;
};

enum usw_move_stage { USW_MOVE_IDLE, USW_MOVE_ASKED, USW_MOVE_RUNNING, USW_MOVE_DONE };

/** One segment on its way. The owner's when idle or done, the mover's in between. */
struct usw_move {
	_Atomic uint32_t stage;
	uint32_t segment;
	bool is_write;
	uint64_t from, to; /* where */
	uint32_t length_bytes;
	uint32_t asked_bytes; /* of it, read or written or being so; the mover's */
	bool is_through;      /* all of it, or it has failed; the mover's */
	bool is_held;         /* its next piece waits for others; the mover's */
	uint64_t damaged[USW_SEGMENT_OBJECTS / 64]; /* a bit for each object that was not opened */
	struct usw_aio_request request;
	char *buffer; /* USW_SLOT_BYTES; the mover's */
};

struct usw_dead_slot {
	uint32_t tier, slot, length_bytes;
};

/** Whom to tell. Called from the owner's or the mover's thread; must not wait. */
struct usw_tiers_hooks {
	void (*moved)(void *context);                /* a move is done: step, please */
	void (*damaged)(void *context, uint32_t id); /* the content of an ID; from the owner */
	/* WARNING, TIER_EMPTY, TIER_REMOVED or TIER_KEPT, the tier's ID, and a sentence */
	void (*report)(void *context, enum usw_event_kind kind, uint32_t id, const char *text);
	void *context;
};

struct usw_tiers {
	struct usw_segments *segments;
	struct usw_tiers_hooks hooks;
	bool is_sealed; /* encryption at rest; fixed before the first tier */
	struct usw_seal_key key;
	struct usw_tags tags; /* of whole pages, where they are sealed */
	struct usw_tier at[USW_TIERS_MAX];
	_Atomic uint32_t count; /* active or leaving */
	uint32_t added_count;   /* ever; control thread */

	_Atomic uint64_t needed_ns; /* when nothing but a disk could make room, last; a hint */

	uint64_t generation;      /* of the last move; owner */
	uint64_t swept_ns;        /* when segments were last counted; owner */
	uint32_t read_faults;     /* what was read less than so many faults ago is in use; owner */
	uint64_t read_bytes;      /* of live objects in such segments on disks; owner */
	uint32_t to_empty;        /* segments that came back in order to be compacted; owner */
	uint32_t waiting_segment; /* read next by the search for segments to bring back; owner */
	struct usw_move moves[USW_MOVES_MAX];

	pthread_mutex_t lock;
	struct usw_dead_slot dead[USW_DEAD_SLOTS_MAX];
	uint32_t dead_head, dead_tail;
	bool is_ready; /* key and mover are there; control thread */
	/* Of files that leave, given back with the file, and what `dead` has no place for; owner. */
	struct usw_dead_slot *held_back;
	uint32_t held_back_count, held_back_capacity;

	pthread_t mover;
	int wake_fd;
	int null_fd; /* -1: not ready */
	_Atomic bool stopping;
	struct usw_aio *aio;
	struct usw_sealer sealer; /* the mover's */
	struct usw_opener opener;
	const struct usw_aio_injection *injection; /* for tests; set before the first tier */

	_Atomic uint64_t demoted_segments;
	_Atomic uint64_t promoted_segments;
	_Atomic uint64_t damaged_objects;
	_Atomic uint64_t peak_bytes;
	_Atomic uint32_t aio_engine;
};

int usw_tiers_init(struct usw_tiers *tiers, struct usw_segments *segments, bool is_sealed,
		   const struct usw_tiers_hooks *hooks);
void usw_tiers_deinit(struct usw_tiers *tiers);

/** What usw_tiers_step() is to bring about. */
struct usw_tiers_plan {
	uint64_t demote_bytes;  /* this much RAM should be freed */
	uint64_t promote_bytes; /* this much may be taken by segments that come back */
	bool is_tight;          /* no RAM is left at all: tiers that leave have to wait */
	bool demote_parked;     /* those that are parked go down, too */
};

/**
 * Publish moves that are done and begin others. Never waits. Owner only; to be called whenever
 * `moved` was called, and when the plan has changed. True if moves are under way, of which at least
 * one may be hoped to succeed: those to a disk whose last write failed are only tried.
 */
bool usw_tiers_step(struct usw_tiers *tiers, const struct usw_tiers_plan *plan);

/** True if there is a disk that could take something now. Owner only. */
bool usw_tiers_have_room(struct usw_tiers *tiers);

/** Count what lives in each tier now, not only from time to time. Owner only. */
void usw_tiers_count(struct usw_tiers *tiers);

/**
 * Add a tier; NULL for the next free name. Control thread. Its ID, or -EEXIST: there is one of this
 * path or name; -ENOSPC: there are too many.
 */
int usw_tiers_add(struct usw_tiers *tiers, const char *path, const char *name, uint64_t cap_bytes,
		  int priority, struct usw_error *error);

/**
 * Begin to remove a tier: its segments are brought back, the rest is usw_tiers_step()'s. Control
 * thread. `ram_free_bytes`: what RAM may take. Its ID, or -ENOENT: no such tier; -EALREADY: it is
 * on its way out; -ENOSPC: what is left cannot hold it. Then nothing has happened.
 */
int usw_tiers_remove(struct usw_tiers *tiers, const char *name, uint64_t ram_free_bytes,
		     struct usw_error *error);

/**
 * Give up removals: there is no room for what they bring back. Owner only. What has come back
 * already may go down again.
 */
void usw_tiers_keep_leaving(struct usw_tiers *tiers);

/** Close the tiers that leave and are empty. Owner only; usw_tiers_step() does it. */
void usw_tiers_close_leaving(struct usw_tiers *tiers);

/** True if whole segments may be read from a tier now: its last such read has not just failed. */
static inline bool usw_tier_may_read(const struct usw_tier *tier, uint64_t now_ns)
{
	return now_ns >= atomic_load_explicit(&tier->read_retry_ns, memory_order_relaxed);
}

/** Describe a tier for the user. Control thread. 1, or 0 if there is none of this number. */
int usw_tiers_describe(struct usw_tiers *tiers, uint32_t number, struct usw_tier_info *ret);

/** True if the tags of a segment are in RAM while it is on a disk. */
static inline bool usw_tiers_has_tags(const struct usw_tiers *tiers, const struct usw_segment *h)
{
	return tiers->is_sealed && atomic_load_explicit(&h->is_whole, memory_order_relaxed);
}

/** The seal's bond of an object in a disk tier. */
static inline struct usw_seal_bond usw_tier_bond(uint32_t segment, uint32_t index,
						 const struct usw_object *object)
{
	return (struct usw_seal_bond){
		.generation = usw_where_generation(object->where),
		.index = index,
		.id = object->owner_id,
		.tier = usw_where_tier(object->where),
		.slot = usw_where_slot(object->where),
		.segment = segment,
		.length_bytes = object->length_bytes,
	};
}

/**
 * Seal an object for its place, `object->where`, and put its tag behind it, or in RAM if it is a whole
 * page. 0 or -errno. The mover.
 */
int usw_tier_seal(struct usw_tiers *tiers, struct usw_sealer *sealer, uint32_t segment,
		  uint32_t index, const struct usw_object *object, char *sealed);

/** The reverse, of what has come from there. As usw_unseal(). Any thread with its own sealer. */
int usw_tier_unseal(const struct usw_tiers *tiers, struct usw_sealer *sealer, uint32_t segment,
		    uint32_t index, const struct usw_object *object, const char *sealed,
		    void *plain);

#endif /* USW_TIER_H */
