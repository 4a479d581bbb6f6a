;; Four kernels for perf/execute.py: each takes a repeat count and gives a checksum.
(module
  (memory (export "memory") 16)

  ;; mixes like one SHA-256 round, without its constants: rotations, choices, additions
  (func $rotr (param i32 i32) (result i32) (i32.rotr (local.get 0) (local.get 1)))
  (func (export "sha256") (param $n i32) (result i32)
    (local $a i32) (local $b i32) (local $c i32) (local $t i32)
    (local.set $a (i32.const 0x6a09e667))
    (local.set $b (i32.const 0xbb67ae85))
    (local.set $c (i32.const 0x3c6ef372))
    (loop $round
      (local.set $t
        (i32.add
          (i32.xor
            (i32.xor (call $rotr (local.get $a) (i32.const 2)) (call $rotr (local.get $a) (i32.const 13)))
            (call $rotr (local.get $a) (i32.const 22)))
          (i32.xor
            (i32.and (local.get $a) (local.get $b))
            (i32.xor (i32.and (local.get $a) (local.get $c)) (i32.and (local.get $b) (local.get $c))))))
      (local.set $c (local.get $b))
      (local.set $b (local.get $a))
      (local.set $a (i32.add (local.get $t) (local.get $n)))
      (local.set $n (i32.sub (local.get $n) (i32.const 1)))
      (br_if $round (local.get $n)))
    (local.get $a))

  ;; insertion sort of 256 words, refilled each time
  (func (export "sort") (param $n i32) (result i32)
    (local $i i32) (local $j i32) (local $v i32) (local $seed i32)
    (local.set $seed (i32.const 1))
    (loop $again
      (local.set $i (i32.const 0))
      (loop $fill
        (local.set $seed (i32.add (i32.mul (local.get $seed) (i32.const 1103515245)) (i32.const 12345)))
        (i32.store (i32.shl (local.get $i) (i32.const 2)) (i32.shr_u (local.get $seed) (i32.const 8)))
        (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (br_if $fill (i32.lt_u (local.get $i) (i32.const 256))))
      (local.set $i (i32.const 1))
      (loop $outer
        (local.set $v (i32.load (i32.shl (local.get $i) (i32.const 2))))
        (local.set $j (local.get $i))
        (block $placed
          (loop $inner
            (br_if $placed (i32.eqz (local.get $j)))
            (br_if $placed
              (i32.le_u
                (i32.load (i32.shl (i32.sub (local.get $j) (i32.const 1)) (i32.const 2)))
                (local.get $v)))
            (i32.store
              (i32.shl (local.get $j) (i32.const 2))
              (i32.load (i32.shl (i32.sub (local.get $j) (i32.const 1)) (i32.const 2))))
            (local.set $j (i32.sub (local.get $j) (i32.const 1)))
            (br $inner)))
        (i32.store (i32.shl (local.get $j) (i32.const 2)) (local.get $v))
        (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (br_if $outer (i32.lt_u (local.get $i) (i32.const 256))))
      (local.set $n (i32.sub (local.get $n) (i32.const 1)))
      (br_if $again (local.get $n)))
    (i32.load (i32.const 512)))

  ;; counts words in 4 KiB of text, byte by byte
  (func (export "parse") (param $n i32) (result i32)
    (local $at i32) (local $inside i32) (local $words i32) (local $byte i32)
    (loop $write
      (i32.store8
        (local.get $at)
        (select (i32.const 32) (i32.const 97) (i32.eqz (i32.rem_u (local.get $at) (i32.const 7)))))
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (br_if $write (i32.lt_u (local.get $at) (i32.const 4096))))
    (loop $again
      (local.set $at (i32.const 0))
      (local.set $inside (i32.const 0))
      (loop $next
        (local.set $byte (i32.load8_u (local.get $at)))
        (if (i32.eq (local.get $byte) (i32.const 32))
          (then (local.set $inside (i32.const 0)))
          (else
            (if (i32.eqz (local.get $inside))
              (then
                (local.set $words (i32.add (local.get $words) (i32.const 1)))
                (local.set $inside (i32.const 1))))))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (br_if $next (i32.lt_u (local.get $at) (i32.const 4096))))
      (local.set $n (i32.sub (local.get $n) (i32.const 1)))
      (br_if $again (local.get $n)))
    (local.get $words))

  ;; 32 x 32 doubles, C += A x B
  (func (export "matmul") (param $n i32) (result f64)
    (local $i i32) (local $j i32) (local $k i32) (local $sum f64)
    (loop $again
      (local.set $i (i32.const 0))
      (loop $rows
        (local.set $j (i32.const 0))
        (loop $columns
          (local.set $sum (f64.const 0))
          (local.set $k (i32.const 0))
          (loop $inner
            (local.set $sum
              (f64.add
                (local.get $sum)
                (f64.mul
                  (f64.add
                    (f64.load (i32.shl (i32.add (i32.shl (local.get $i) (i32.const 5)) (local.get $k)) (i32.const 3)))
                    (f64.const 1.5))
                  (f64.add
                    (f64.load offset=8192
                      (i32.shl (i32.add (i32.shl (local.get $k) (i32.const 5)) (local.get $j)) (i32.const 3)))
                    (f64.const 0.5)))))
            (local.set $k (i32.add (local.get $k) (i32.const 1)))
            (br_if $inner (i32.lt_u (local.get $k) (i32.const 32))))
          (f64.store offset=16384
            (i32.shl (i32.add (i32.shl (local.get $i) (i32.const 5)) (local.get $j)) (i32.const 3))
            (local.get $sum))
          (local.set $j (i32.add (local.get $j) (i32.const 1)))
          (br_if $columns (i32.lt_u (local.get $j) (i32.const 32))))
        (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (br_if $rows (i32.lt_u (local.get $i) (i32.const 32))))
      (local.set $n (i32.sub (local.get $n) (i32.const 1)))
      (br_if $again (local.get $n)))
    (local.get $sum)))
