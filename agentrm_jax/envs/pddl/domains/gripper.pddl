; A robot with two grippers carries balls between rooms. Untyped: ball, room and gripper are
; predicates, as in the problem files of AgentBoard.
(define (domain gripper-strips)
  (:requirements :strips)
  (:predicates
    (room ?r) (ball ?b) (gripper ?g)
    (at-robby ?r) (at ?b ?r) (free ?g) (carry ?b ?g))

  (:action move
    :parameters (?here ?there)
    :precondition (and (room ?here) (room ?there) (at-robby ?here))
    :effect (and (not (at-robby ?here)) (at-robby ?there)))

  (:action pick
    :parameters (?b ?r ?g)
    :precondition (and (ball ?b) (room ?r) (gripper ?g) (at-robby ?r) (at ?b ?r) (free ?g))
    :effect (and (not (at ?b ?r)) (not (free ?g)) (carry ?b ?g)))

  (:action drop
    :parameters (?b ?r ?g)
    :precondition (and (ball ?b) (room ?r) (gripper ?g) (at-robby ?r) (carry ?b ?g))
    :effect (and (not (carry ?b ?g)) (free ?g) (at ?b ?r))))
