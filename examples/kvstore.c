// SPDX-License-Identifier: MIT

/**
 * @file
 * A key-value store with many threads that holds more than the memory it may use.
 *
 *     gcc -O2 -pthread examples/kvstore.c -o kvstore
 *     uffdswap run --resident 100M -- ./kvstore 400 8
 *
 * Arguments: MiB of values, threads. The store is a hash table of chains behind 1024 locks. All
 * threads put, get and delete; each key belongs to one thread, which knows what its value has to
 * be, while the chains and locks belong to all. The exit status is 0 only if every value was right.
 */

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LOCKS 1024
#define THREADS_MAX 64
#define VALUE_BYTES_MAX 1024

struct item {
	struct item *next;
	uint64_t key;
	uint32_t value_bytes;
	char value[];
};

static struct {
	struct item **chains;
	size_t chain_count; /* a multiple of LOCKS */
	pthread_mutex_t locks[LOCKS];
} store;

static size_t keys_per_thread;

static uint64_t hash(uint64_t x)
{
	x = (x ^ (x >> 31)) * 0x7fb5d329728ea185u;
	x = (x ^ (x >> 27)) * 0x81dadef4bc2dd44du;
	return x ^ (x >> 33);
}

/* ------------------------------------------------------------------ the store */

static void store_init(size_t keys)
{
	store.chain_count = (keys / 2 / LOCKS + 1) * LOCKS;
	store.chains = calloc(store.chain_count, sizeof(*store.chains));
	if (!store.chains) {
		fprintf(stderr, "kvstore: out of memory\n");
		exit(1);
	}
	for (size_t i = 0; i < LOCKS; i++)
		pthread_mutex_init(&store.locks[i], NULL);
}

/* Locks the chain that the key belongs to. */
static struct item **chain_lock(uint64_t key, pthread_mutex_t **ret_lock)
{
	size_t chain = hash(key) % store.chain_count;

	*ret_lock = &store.locks[chain % LOCKS];
	pthread_mutex_lock(*ret_lock);
	return &store.chains[chain];
}

static struct item **find(struct item **link, uint64_t key)
{
	while (*link && (*link)->key != key)
		link = &(*link)->next;
	return link;
}

static void store_delete(uint64_t key)
{
	pthread_mutex_t *lock;
	struct item **link = find(chain_lock(key, &lock), key);
	struct item *item = *link;

	if (item)
		*link = item->next;
	pthread_mutex_unlock(lock);
	free(item);
}

static void store_put(uint64_t key, const char *value, uint32_t value_bytes)
{
	struct item *item = malloc(sizeof(*item) + value_bytes);
	pthread_mutex_t *lock;
	struct item **chain;

	if (!item) {
		fprintf(stderr, "kvstore: out of memory\n");
		exit(1);
	}
	store_delete(key);
	item->key = key;
	item->value_bytes = value_bytes;
	memcpy(item->value, value, value_bytes);
	chain = chain_lock(key, &lock);
	item->next = *chain;
	*chain = item;
	pthread_mutex_unlock(lock);
}

/* Copies the value out; returns its length, or 0 if the key is not there. */
static uint32_t store_get(uint64_t key, char *ret_value)
{
	pthread_mutex_t *lock;
	struct item *item = *find(chain_lock(key, &lock), key);
	uint32_t value_bytes = item ? item->value_bytes : 0;

	if (item)
		memcpy(ret_value, item->value, value_bytes);
	pthread_mutex_unlock(lock);
	return value_bytes;
}

/* ------------------------------------------------------------------ its users */

struct user {
	pthread_t thread;
	uint64_t id;
	uint8_t *versions; /* of its keys; 0: not in the store */
	uint64_t wrong;
};

/* A short text again and again, as long as key and version say: from 256 bytes to 1 KiB. */
static uint32_t make_value(uint64_t key, uint8_t version, char *ret_value)
{
	uint32_t value_bytes =
		256 + (uint32_t)(hash(key * 256 + version) % (VALUE_BYTES_MAX - 256));
	int length = snprintf(ret_value, 64, "value %lx of key %lu, version %u; ",
			      hash(key + version), key, version);

	for (uint32_t i = (uint32_t)length; i < value_bytes; i++)
		ret_value[i] = ret_value[i - (uint32_t)length];
	return value_bytes;
}

static void check(struct user *user, size_t index)
{
	uint64_t key = user->id << 32 | index;
	uint8_t version = user->versions[index];
	char expected[VALUE_BYTES_MAX];
	char value[VALUE_BYTES_MAX];
	uint32_t value_bytes = version ? make_value(key, version, expected) : 0;

	if (store_get(key, value) == value_bytes && !memcmp(value, expected, value_bytes))
		return;
	if (!user->wrong++)
		fprintf(stderr, "kvstore: key %#lx, version %u: WRONG value\n", key, version);
}

static void put(struct user *user, size_t index)
{
	uint64_t key = user->id << 32 | index;
	char value[VALUE_BYTES_MAX];

	user->versions[index] = (uint8_t)(user->versions[index] % 255 + 1);
	store_put(key, value, make_value(key, user->versions[index], value));
}

static void *use(void *argument)
{
	struct user *user = argument;
	uint64_t chance = hash(user->id + 1);

	for (size_t index = 0; index < keys_per_thread; index++)
		put(user, index);
	for (size_t i = 0; i < keys_per_thread; i++) {
		size_t index = (chance = hash(chance + i)) % keys_per_thread;

		check(user, index);
		if (i % 4 == 0) {
			put(user, index);
		} else if (i % 16 == 1) {
			store_delete(user->id << 32 | index);
			user->versions[index] = 0;
		}
	}
	for (size_t index = 0; index < keys_per_thread; index++)
		check(user, index);
	return NULL;
}

int main(int argc, char **argv)
{
	size_t mebibytes = argc > 1 ? strtoul(argv[1], NULL, 10) : 300;
	size_t threads = argc > 2 ? strtoul(argv[2], NULL, 10) : 8;
	static struct user users[THREADS_MAX];
	uint64_t wrong = 0;

	if (!mebibytes || !threads || threads > THREADS_MAX) {
		fprintf(stderr, "usage: %s [MEBIBYTES [THREADS]]\n", argv[0]);
		return 2;
	}
	keys_per_thread = (mebibytes << 20) / (VALUE_BYTES_MAX + 256) * 2 / threads;
	store_init(keys_per_thread * threads);
	for (size_t i = 0; i < threads; i++) {
		users[i].id = i + 1;
		users[i].versions = calloc(keys_per_thread, 1);
		if (!users[i].versions || pthread_create(&users[i].thread, NULL, use, &users[i])) {
			fprintf(stderr, "kvstore: cannot start thread %zu\n", i);
			return 1;
		}
	}
	for (size_t i = 0; i < threads; i++) {
		pthread_join(users[i].thread, NULL);
		wrong += users[i].wrong;
	}
	printf("%zu keys, %zu threads: %s\n", keys_per_thread * threads, threads,
	       wrong ? "WRONG values" : "every value is right");
	return wrong ? 1 : 0;
}
