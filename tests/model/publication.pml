/*
 * The protocol between the writer of a state and its readers, on weakly ordered memory.
 *
 * Memory is that of C++: each location has the sequence of all values stored to it, and each thread
 * a view, which says how old a value it may still load. A load returns any value from the view on.
 * Release and acquire, and the fences, pass views on. So a store may reach one thread late, and
 * stores to several locations in any order, unless the order is asked for. Not modelled: a load that
 * takes effect after a later store of its thread (load buffering); where the protocol depends on
 * that order, the store depends on the value, or a system call is between them.
 *
 * One key is set by the updates 1 to LAST. Its versions are in SLOTS places, which the writer uses
 * again. Each step names the function that it models. tests/model/model_test.py runs this file, and
 * each weakened form (#ifdef), which must fail.
 *
 * Readers: with POINT, one that reads without a pin (point_read.h). With VIEW, one that pins an update
 * by an OFD read lock at the offset of its id, and reads twice.
 */

#ifndef LAST
#define LAST 4
#endif
#ifndef CRASHES
#define CRASHES 0
#endif
#define SLOTS 3
#define NONE 3
#define MESSAGES 9

/* Locations */
#define APPLIED 0     /* Header::applied_id */
#define GENERATION 1  /* Header::reclaim_generation */
#define HORIZON 2     /* Header::reclaim_horizon */
#define WORD 3        /* the index word of the key: a slot */
#define LOCKS 4       /* the kernel's list of locks: 1 + the pinned id, 0 if it is empty */
#define ANSWERED 5    /* what a caller was told: set() has returned this id */
#define ENTRY 6       /* 6, 7, 8: the entry's id and the slot of the previous version */
#define VALUE 9       /* 9, 10, 11: the entry's value */
#define LOCATIONS 12

#define WRITER 0
#define READ 1
#define THREADS 2

#define pack(id, previous) ((id) * 4 + (previous))
#define id_of(entry) ((entry) / 4)
#define previous_of(entry) ((entry) % 4)

typedef View { byte at[LOCATIONS] }
typedef Message { byte value; byte view[LOCATIONS] }
typedef History { Message message[MESSAGES] }

History history[LOCATIONS];
byte length[LOCATIONS];
View now_[THREADS];       /* what the thread has seen */
View seen_relaxed[THREADS]; /* and what an acquire fence would add */
View released[THREADS];   /* what its relaxed stores pass on: its view at the last release fence */
View sequence;            /* the seq_cst fences pass this on, in their order */
byte i_;                  /* scratch of the macros; 0 outside them */

#define latest(location) history[location].message[length[location] - 1]
#define raise(to, from) if :: to < from -> to = from :: else fi

inline store(thread, location, what, is_release) {
  d_step {
    assert(length[location] < MESSAGES);
    length[location]++;
    now_[thread].at[location] = length[location] - 1;
    latest(location).value = what;
    for (i_ : 0 .. LOCATIONS - 1) {
      if
      :: is_release -> latest(location).view[i_] = now_[thread].at[i_]
      :: else -> latest(location).view[i_] = released[thread].at[i_]
      fi
    }
    latest(location).view[location] = length[location] - 1;
    i_ = 0;
    printf("%d stores %d = %d\n", thread, location, what)
  }
}

/* Loads any value that the thread's view allows. */
inline load(thread, location, result, is_acquire) {
  atomic {
    do
    :: now_[thread].at[location] + 1 < length[location] -> now_[thread].at[location]++
    :: break
    od;
    skip;  /* nothing may jump into the step */
    d_step {
      result = history[location].message[now_[thread].at[location]].value;
      for (i_ : 0 .. LOCATIONS - 1) {
        raise(seen_relaxed[thread].at[i_],
              history[location].message[now_[thread].at[location]].view[i_]);
      }
      if
      :: is_acquire ->
         for (i_ : 0 .. LOCATIONS - 1) {
           raise(now_[thread].at[i_],
                 history[location].message[now_[thread].at[location]].view[i_]);
         }
      :: else
      fi;
      i_ = 0;
    }
  }
}
inline fence_acquire(thread) {
  d_step {
    for (i_ : 0 .. LOCATIONS - 1) { raise(now_[thread].at[i_], seen_relaxed[thread].at[i_]) }
    i_ = 0;
  }
}

inline fence_release(thread) {
  d_step {
    for (i_ : 0 .. LOCATIONS - 1) { released[thread].at[i_] = now_[thread].at[i_] }
    i_ = 0;
  }
}

inline fence_seq_cst(thread) {
  d_step {
    for (i_ : 0 .. LOCATIONS - 1) {
      raise(now_[thread].at[i_], seen_relaxed[thread].at[i_]);
      raise(now_[thread].at[i_], sequence.at[i_]);
      sequence.at[i_] = now_[thread].at[i_];
      released[thread].at[i_] = now_[thread].at[i_];
    }
    i_ = 0;
  }
}

/* fcntl(F_OFD_SETLK): changes the list under the kernel's spin lock, which orders it after the
 * previous change. Nothing orders later loads of the thread after the change itself. */
inline kernel_set_lock(thread, what) {
  d_step {
    for (i_ : 0 .. LOCATIONS - 1) { raise(now_[thread].at[i_], latest(LOCKS).view[i_]) }
    i_ = 0;
  }
  store(thread, LOCKS, what, true)
}

/* fcntl(F_OFD_GETLK): posix_test_lock() looks whether the list is empty before it takes the spin
 * lock. So an empty list may be an old one. */
inline kernel_get_lock(thread, result) {
  atomic {
    load(thread, LOCKS, result, false);
    if
    :: result != 0 ->
       d_step {
         now_[thread].at[LOCKS] = length[LOCKS] - 1;
         result = latest(LOCKS).value;
         for (i_ : 0 .. LOCATIONS - 1) { raise(now_[thread].at[i_], latest(LOCKS).view[i_]) }
         i_ = 0;
       }
    :: else
    fi
  }
}

/* --- Readers --- */

#ifdef POINT
proctype point_reader() {
  byte told, generation, again, slot, entry, applied, value, last_id, reads;
  do
  :: reads < 2 ->
     reads++;
     /* The read must see at least the id that set() returned to another process, which passed it
      * on, and that applied_id() returned here. */
     if
     :: load(READ, ANSWERED, told, true)
     :: load(READ, APPLIED, told, true)
     fi;
     load(READ, GENERATION, generation, true);  /* OptimisticRead */
     load(READ, WORD, slot, true);              /* Bucket, fast_look_up() */
     load(READ, ENTRY + slot, entry, false);    /* EntryWord */
     load(READ, APPLIED, applied, true);        /* UnpinnedRead::max_entry_word() */
     do                                         /* look_up(): follow the version chain */
     :: id_of(entry) > applied && previous_of(entry) != NONE ->
        slot = previous_of(entry);
        load(READ, ENTRY + slot, entry, false);
     :: else -> break
     od;
     load(READ, VALUE + slot, value, false);    /* finish_point_read(): copy */
#ifndef WITHOUT_ACQUIRE_FENCE
     fence_acquire(READ);                       /* OptimisticRead::validate() */
#endif
     load(READ, GENERATION, again, false);
     if
#ifndef WITHOUT_VALIDATION
     :: again != generation -> skip             /* read again */
#endif
     :: else ->
        assert(id_of(entry) <= applied);        /* only published updates */
        assert(value == id_of(entry));          /* whole, never torn */
        assert(id_of(entry) >= told);           /* read your writes */
        assert(id_of(entry) >= last_id);        /* never backwards */
        last_id = id_of(entry);
     fi
  :: else -> break
  od
}
#endif

#ifdef VIEW
proctype view_reader() {
  byte pinned, horizon, slot, entry, value, reads, tries;
  /* Pin::pin_newest() */
pin:
  if
  :: tries == 2 -> goto end                     /* the real one goes on: bound the model */
  :: else -> tries++
  fi;
  load(READ, APPLIED, pinned, true);            /* read_published() */
  kernel_set_lock(READ, pinned + 1);
#ifndef WITHOUT_READER_FENCE
  fence_seq_cst(READ);
#endif
  load(READ, HORIZON, horizon, true);
#ifndef WITHOUT_HORIZON
  if
  :: horizon > pinned -> goto pin               /* the writer may not have seen the pin */
  :: else
  fi;
#endif
  do
  :: reads < 2 ->                               /* Pin::find() */
     reads++;
     load(READ, WORD, slot, true);
     load(READ, ENTRY + slot, entry, false);
     do
     :: id_of(entry) > pinned && previous_of(entry) != NONE ->
        slot = previous_of(entry);
        load(READ, ENTRY + slot, entry, false);
     :: else -> break
     od;
     load(READ, VALUE + slot, value, false);
     assert(id_of(entry) == pinned);            /* the newest as of the update, and still there */
     assert(value == pinned);
  :: else -> break
  od;
end:
  skip;
  kernel_set_lock(READ, 0)                      /* ~Pin() */
}
#endif

/* --- The writer --- */

/* A writer dies between any two of its stores. */
#define die_here if :: crashes > 0 -> crashes--; goto recovery :: skip fi

proctype writer() {
  byte id, slot, free_slot, applied = 1, oldest, entry, generation, crashes = CRASHES;
  byte stamp[SLOTS];   /* 0: free. 255: in use. Else retired by this update */
  byte s;
  bool raised;

  stamp[0] = 255;
next_update:
  do
  :: applied < LAST ->
     id = applied + 1;
     /* Applier::apply(), Allocator::begin_update(): reclaim_segments() */
     raised = false;
     if
     :: id > 2 ->
        /* advance_horizon() */
        store(WRITER, HORIZON, applied, true);
        die_here;
#ifndef WITHOUT_WRITER_FENCE
        fence_seq_cst(WRITER);
#endif
        kernel_get_lock(WRITER, oldest);        /* the oldest pinned id */
        if
        :: oldest == 0 || oldest - 1 > applied -> oldest = applied
        :: else -> oldest = oldest - 1
        fi;
        for (s : 0 .. SLOTS - 1) {
          if
          :: stamp[s] != 0 && stamp[s] != 255 && stamp[s] <= oldest ->
             if
             :: !raised ->
                raised = true;
                die_here;
                /* increment_generation() */
                generation++;
                store(WRITER, GENERATION, generation, true);
#ifndef WITHOUT_RELEASE_FENCE
                fence_release(WRITER);
#endif
             :: else
             fi;
             stamp[s] = 0
          :: else
          fi
        }
        s = 0
     :: else
     fi;
     /* allocate_entry() */
     free_slot = NONE;
     for (s : 0 .. SLOTS - 1) {
       if
       :: stamp[s] == 0 && free_slot == NONE -> free_slot = s
       :: else
       fi
     }
     s = 0;
     if
     :: free_slot == NONE -> break              /* a view holds everything; the file would grow */
     :: else
     fi;
     slot = latest(WORD).value;
     die_here;
     /* write_entry(): plain stores */
     store(WRITER, VALUE + free_slot, id, false);
     die_here;
     store(WRITER, ENTRY + free_slot, pack(id, slot), false);
     die_here;
#ifdef PUBLISHED_EARLY
     store(WRITER, APPLIED, id, true);
#endif
     /* PointIndex::replace() */
#ifdef INDEX_RELAXED
     store(WRITER, WORD, free_slot, false);
#else
     store(WRITER, WORD, free_slot, true);
#endif
     die_here;
     stamp[slot] = id;                          /* retire_entry() */
     stamp[free_slot] = 255;
     /* publish() */
#ifndef PUBLISHED_EARLY
#ifdef APPLIED_RELAXED
     store(WRITER, APPLIED, id, false);
#else
     store(WRITER, APPLIED, id, true);
#endif
#endif
     applied = id;
     die_here;
     store(WRITER, ANSWERED, id, true)          /* Cache::set() returns */
  :: else -> break
  od;
  goto finished;

  /* recover(): the next writer. It takes the writer lock, which the kernel releases after all
   * stores of the dead one. */
recovery:
  skip;
  d_step {
    for (i_ : 0 .. LOCATIONS - 1) {
      now_[WRITER].at[i_] = length[i_] - 1;
      seen_relaxed[WRITER].at[i_] = length[i_] - 1
    }
    for (i_ : 0 .. LOCATIONS - 1) { released[WRITER].at[i_] = now_[WRITER].at[i_] }
    i_ = 0;
    s = 0;
    applied = latest(APPLIED).value;
    generation = latest(GENERATION).value;
    slot = latest(WORD).value;
    entry = latest(ENTRY + slot).value
  }
  store(WRITER, HORIZON, applied, true);
  if
  :: id_of(entry) > applied ->                  /* roll_back(): to the previous version */
     slot = previous_of(entry);
     store(WRITER, WORD, slot, true)
  :: else
  fi;
  /* write_allocator_state(), has_views() */
#ifndef WITHOUT_WRITER_FENCE
  fence_seq_cst(WRITER);
#endif
  kernel_get_lock(WRITER, oldest);
  generation++;
  store(WRITER, GENERATION, generation, true);
#ifndef WITHOUT_RELEASE_FENCE
  fence_release(WRITER);
#endif
  d_step {
    for (s : 0 .. SLOTS - 1) {
      if
      :: s == slot -> stamp[s] = 255
#ifdef RECOVERY_FORGETS_VIEWS
      :: else -> stamp[s] = applied
#else
      :: s != slot && oldest != 0 -> stamp[s] = applied + 1
      :: s != slot && oldest == 0 -> stamp[s] = applied
#endif
      fi
    }
    s = 0;
    raised = false;
    oldest = 0;
    entry = 0
  }
  goto next_update;
finished:
  skip
}

init {
  d_step {
    for (i_ : 0 .. LOCATIONS - 1) { length[i_] = 1 }
    i_ = 0;
    /* Update 1 is published in slot 0. */
    latest(APPLIED).value = 1;
    latest(ANSWERED).value = 1;
    latest(ENTRY).value = pack(1, NONE);
    latest(VALUE).value = 1
  }
  atomic {
    run writer();
#ifdef POINT
    run point_reader();
#endif
#ifdef VIEW
    run view_reader();
#endif
  }
}
